"""The configuration: where its YAML files lie, and the classes that hold it.

Each class is the schema by which Hydra composes and checks a verb's values, and then the plain object that the verb
reads (`config/plain.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from visllama.config.selection import job_name
from visllama.machine.ranks import on_first_rank, run_id, run_key


def conf_dir() -> Path:
    """Return the folder of YAML files: `visllama/conf` in a wheel, `conf/` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def read_conf(path: str) -> dict[str, Any]:
    """Read one of our YAML files as plain values, references left as they are written.

    Args:
        path: Path of the file below `conf/`.
    """
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / path))


_NO_KEY = {"omegaconf_ignore": True}
"""Metadata of a field that is no key: Hydra does not know it."""


def key_names(schema: type) -> list[str]:
    """Return the names of the keys of one of the classes below."""
    return [each.name for each in fields(schema) if each.metadata != _NO_KEY]


@dataclass
class StageSettings:
    """What a stage is: values only."""

    trainable: list[str] = MISSING
    global_batch_size: int = MISSING
    epochs: float = MISSING
    num_samples: int | None = None
    max_text_tokens: int = MISSING
    prompt: str = MISSING
    template: Any = MISSING


@dataclass
class DataSettings:
    """Where records come from."""

    sources: dict[str, Any] = field(default_factory=dict)
    num_workers: int = MISSING
    num_val_records: int | None = None
    window_shards: int = MISSING
    max_bad_fraction: float = MISSING
    max_consecutive_bad: int = MISSING
    allow_reorder: bool = False
    log_consumed: bool = False


@dataclass
class TrainerSettings:
    """Where and how long a run computes."""

    accelerator: str = MISSING
    devices: Any = MISSING
    num_nodes: Any = MISSING
    precision: str = MISSING
    max_steps: int | None = None
    val_check_interval: float | None = None
    log_every_steps: int = MISSING
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = MISSING
    max_skipped_steps: int = MISSING
    timeout_s: float = MISSING
    preempted_exit_code: int = MISSING
    requeue: bool = False
    activation_checkpointing: bool = False
    threads: int = MISSING
    strategy: Any = MISSING


@dataclass
class EvaluationSettings:
    """What is judged, and how; `images`, `references` and `questions` are files that its source reads, if it does."""

    task: str = MISSING
    split: str = MISSING
    source: dict[str, Any] = MISSING
    metrics: list[str] = MISSING
    controls: list[str] = field(default_factory=list)
    batch_size: int = MISSING
    prompt: str | None = None
    template: Any = None
    decoding: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "ptb"
    document_frequencies: str | None = None
    num_images: int | None = None
    clip: str | None = None
    instances: str | None = None
    object_names: str | None = None
    images: str | None = None
    references: str | None = None
    questions: str | None = None


@dataclass
class RunConfig:
    """What every verb has."""

    name: str = MISSING
    seed: int = 1
    plugins: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainConfig(RunConfig):
    """What a run of training is made of.

    Attributes:
        judged_on: The evaluations as this run is judged on them, by the name under which its scores are written: those
            of `evaluation`, but on validation where the run is one of rivals in a sweep. This is no key: `plain` fills
            it in.
    """

    micro_batch_size: int = MISSING
    judge: bool = True
    objective: str | None = None
    check_only: bool = False
    resume: str | None = None
    init_from: str | None = None
    model: dict[str, Any] = MISSING
    data: DataSettings = field(default_factory=DataSettings)
    evaluation: dict[str, EvaluationSettings] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    stage: StageSettings = field(default_factory=StageSettings)
    optim: dict[str, Any] = MISSING
    loss: Any = None
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    profiler: Any = None
    search: Any = None
    judged_on: dict[str, Any] = field(default_factory=dict, metadata=_NO_KEY)


@dataclass
class InspectConfig(TrainConfig):
    """What `train` has, and how much is looked at; or the weights whose connector is."""

    samples: int = MISSING
    num_samples: int = MISSING
    weights: str | None = None
    num_pictures: int = MISSING


@dataclass
class PlanConfig(TrainConfig):
    """What `train` has, and where it would run."""

    gpu: str = MISSING
    utilisation: float = MISSING
    network_gb_s: float = MISSING
    text_tokens: float | None = None
    samples: int | None = None
    out: str | None = None


@dataclass
class EvaluateConfig(RunConfig):
    """What is judged: weights, or predictions beside their references."""

    weights: str | None = None
    predictions: str | None = None
    references: str | None = None
    questions: str | None = None
    metrics: list[str] = MISSING
    tokenizer: str = "ptb"
    document_frequencies: str | None = None
    subset: bool = False
    resume: str | None = None
    evaluation: dict[str, EvaluationSettings] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class CaptionConfig(RunConfig):
    """Which pictures are captioned, and by which weights."""

    weights: str = MISSING
    images: Any = MISSING
    json: bool = False
    batch_size: int = 32
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class AskConfig(CaptionConfig):
    """What is asked about which pictures."""

    images: Any = None
    question: Any = MISSING


@dataclass
class ChatConfig(RunConfig):
    """Which weights are talked with, and about which pictures."""

    weights: str = MISSING
    images: Any = None
    system: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class ExportConfig(RunConfig):
    """Which weights leave, in which format, and where to."""

    weights: str = MISSING
    format: str = MISSING
    out: str = MISSING
    dtype: str = MISSING
    max_shard_size: str = MISSING
    vision_encoder: str | None = None
    language_model: str | None = None
    push: str | None = None
    private: bool = True


@dataclass
class DemoConfig(RunConfig):
    """Which weights are shown on a page, and to whom."""

    weights: Any = MISSING
    host: str = MISSING
    port: int = MISSING
    user: str | None = None
    max_upload_mb: float = MISSING
    requests_per_minute: int = MISSING
    max_queue: int = MISSING
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class ReportConfig(RunConfig):
    """Which runs are compared, and how the result is shown."""

    runs: Any = MISSING
    evaluations: Any = None
    rows: Any = None
    over: Any = None
    columns: Any = None
    format: str = MISSING
    out: str | None = None
    published: str | None = None
    mixed: bool = False
    num_pictures: int = MISSING


@dataclass
class PrepareConfig(RunConfig):
    """What every source has.

    Attributes:
        keys: The source's own keys, which come with its YAML; `prepare/keys.py` checks them. It is no key itself.
    """

    name: str | None = None
    source: str = MISSING
    out: str | None = None
    keys: dict[str, Any] = field(default_factory=dict, metadata=_NO_KEY)


@dataclass
class BenchmarkConfig(RunConfig):
    """What is measured, and for how long."""

    what: str = MISSING
    size: str = MISSING


def register() -> None:
    """Make schemas and resolvers known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in (
        ("train_schema", TrainConfig),
        ("evaluate_schema", EvaluateConfig),
        ("caption_schema", CaptionConfig),
        ("chat_schema", ChatConfig),
        ("demo_schema", DemoConfig),
        ("benchmark_schema", BenchmarkConfig),
        ("export_schema", ExportConfig),
        ("report_schema", ReportConfig),
    ):
        store.store(name=name, node=schema)
    for name, schema, base in (
        ("inspect_schema", InspectConfig, TrainConfig),
        ("plan_schema", PlanConfig, TrainConfig),
        ("ask_schema", AskConfig, CaptionConfig),
    ):
        extending = OmegaConf.structured(schema)
        for key in key_names(base):
            extending[key] = MISSING  # it is merged over what the base's verb composed, whose values stand
        store.store(name=name, node=extending)
    store.store(name="prepare_schema", node=OmegaConf.structured(PrepareConfig, flags={"struct": False}))
    OmegaConf.register_new_resolver("run_id", run_id, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("on_first_rank", on_first_rank, replace=True)
    OmegaConf.register_new_resolver("run_key", run_key, replace=True)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
