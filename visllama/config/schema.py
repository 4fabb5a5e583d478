"""The configuration: where its YAML files lie, and the classes that hold it.

Each class is the schema by which Hydra composes and checks a verb's values, and then the plain object that the verb
reads (`config/plain.py`). A field's meaning stands as a comment at its key in the YAML files of `conf/`; a field
without a default here (`MISSING`) has it there, or has to be typed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from visllama.config.selection import job_name
from visllama.machine.ranks import on_first_rank, run_id, run_key


def conf_dir() -> Path:
    """Return the folder of our YAML files: `conf/` inside the package in a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "conf"
    in_checkout = package.parent / "conf"
    return in_wheel if in_wheel.is_dir() else in_checkout


def read_conf(path: str) -> dict[str, Any]:
    """Read one of our YAML files, and return its keys and values as nested dictionaries.

    Its `defaults` are not followed, and references (`${...}`) are returned as they are written.

    Args:
        path: The path of the file below `conf/`, as "trainer/auto.yaml".
    """
    content = OmegaConf.load(conf_dir() / path)
    return cast("dict[str, Any]", OmegaConf.to_container(content))


_NO_KEY = {"omegaconf_ignore": True}
"""The metadata of a field that is no key: OmegaConf leaves it out of the schema."""


def key_names(schema: type) -> list[str]:
    """Return the names of a schema's keys, inherited ones first; fields that are no keys are left out.

    Args:
        schema: One of the classes of this module, for example `TrainConfig`.
    """
    return [each.name for each in fields(schema) if each.metadata != _NO_KEY]


# What each key means stands as a comment beside its default, in the YAML files of `conf/`.


@dataclass
class StageSettings:
    """The group `stage`: which parts of the model are trained in a phase of training, and on how many samples."""

    trainable: list[str] = MISSING
    global_batch_size: int = MISSING
    epochs: float = MISSING
    num_samples: int | None = None
    max_text_tokens: int = MISSING
    prompt: str = MISSING
    # A name, or the strings of a template.
    template: Any = MISSING


@dataclass
class DataSettings:
    """The group `data`: the sources of training records, and how records are loaded."""

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
    """The group `trainer`: on which devices and for how long a run computes, and when it validates, logs and saves."""

    accelerator: str = MISSING
    # A number, a list of indices, or "auto".
    devices: Any = MISSING
    # A number, or "auto".
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
    # "auto", or a node with a `_target_`.
    strategy: Any = MISSING


@dataclass
class EvaluationSettings:
    """One evaluation, a node below `evaluation`: the data to judge weights on, the metrics, and how texts are written.

    Attributes:
        images: A folder of pictures, for a source that reads one.
        references: A file of reference captions or answers, for a source that reads one.
        questions: A file of questions, for a source that reads one.
    """

    task: str = MISSING
    split: str = MISSING
    source: dict[str, Any] = MISSING
    metrics: list[str] = MISSING
    controls: list[str] = field(default_factory=list)
    batch_size: int = MISSING
    prompt: str | None = None
    # A name, or the strings of a template; null takes the one that the weights were trained with.
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
    """The keys that the configurations of all verbs have; each verb's class derives from it."""

    name: str = MISSING
    seed: int = 1
    plugins: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainConfig(RunConfig):
    """The configuration of `train`.

    Attributes:
        judged_on: The settings of the evaluations that this run is judged by, as dictionaries, by the names that its
            scores are written under. They are those of `evaluation`; in a sweep whose best job is chosen, those on the
            split "val" instead. This field is no key of the configuration: `plain` fills it in.
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
    # Nodes with a `_target_`, or null: OmegaConf knows no `dict | None`.
    loss: Any = None
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    profiler: Any = None
    search: Any = None
    judged_on: dict[str, Any] = field(default_factory=dict, metadata=_NO_KEY)


@dataclass
class InspectConfig(TrainConfig):
    """The configuration of `inspect`: that of `train`, how much is shown, and weights if their connector is studied."""

    samples: int = MISSING
    num_samples: int = MISSING
    weights: str | None = None
    num_pictures: int = MISSING


@dataclass
class PlanConfig(TrainConfig):
    """The configuration of `plan`: that of `train`, the machine that the run would have, and the file to write."""

    gpu: str = MISSING
    utilisation: float = MISSING
    network_gb_s: float = MISSING
    text_tokens: float | None = None
    samples: int | None = None
    out: str | None = None


@dataclass
class EvaluateConfig(RunConfig):
    """The configuration of `evaluate`, which judges weights, or scores a file of predictions against references."""

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
    """The configuration of `caption`: the pictures, and the weights that caption them."""

    weights: str = MISSING
    # A file, a folder, or a list of them.
    images: Any = MISSING
    json: bool = False
    batch_size: int = 32
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class AskConfig(CaptionConfig):
    """The configuration of `ask`: that of `caption`, and the question."""

    images: Any = None
    question: Any = MISSING


@dataclass
class ChatConfig(RunConfig):
    """The configuration of `chat`: the weights that answer, and the pictures that the talk is about."""

    weights: str = MISSING
    images: Any = None
    system: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class ExportConfig(RunConfig):
    """The configuration of `export`: the weights, the format to write them in, and the folder to write to."""

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
    """The configuration of `demo`: the weights, and the address and limits of the web page that shows them."""

    # A folder, or a list of them.
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
    """The configuration of `report`: the runs to compare, and the form of the table."""

    # Each is one name, or a list of them.
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
    """The configuration of `prepare`: the keys that all its sources have, and the chosen source's own.

    Attributes:
        keys: The source's own keys and values, which its YAML adds; `prepare/keys.py` checks them. This field is no key
            of the configuration.
    """

    name: str | None = None  # pyrefly: ignore[bad-override]  prepare starts no run, which alone needs a name
    source: str = MISSING
    out: str | None = None
    keys: dict[str, Any] = field(default_factory=dict, metadata=_NO_KEY)


@dataclass
class BenchmarkConfig(RunConfig):
    """The configuration of `benchmark`: what is measured, and at which size."""

    what: str = MISSING
    size: str = MISSING


def register() -> None:
    """Register each verb's schema and the resolvers (`${run_id:}`, `${add:...}`, ...) with Hydra.

    This has to come before anything is composed. It may be called again, which changes nothing.
    """
    _store_schemas()
    OmegaConf.register_new_resolver("run_id", run_id, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("on_first_rank", on_first_rank, replace=True)
    OmegaConf.register_new_resolver("run_key", run_key, replace=True)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("add", _add, replace=True)


def _store_schemas() -> None:
    """Store each verb's schema in Hydra under the name that the verb's YAML lists in its `defaults`."""
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

    # A verb that extends another is merged over what the other's YAML composed: its schema has no defaults for the
    # keys that it inherits, so that the composed values stand.
    for name, schema, base in (
        ("inspect_schema", InspectConfig, TrainConfig),
        ("plan_schema", PlanConfig, TrainConfig),
        ("ask_schema", AskConfig, CaptionConfig),
    ):
        extending = OmegaConf.structured(schema)
        for key in key_names(base):
            extending[key] = MISSING
        store.store(name=name, node=extending)

    # A source's YAML brings keys of its own, which no schema knows.
    prepare_schema = OmegaConf.structured(PrepareConfig, flags={"struct": False})
    store.store(name="prepare_schema", node=prepare_schema)


def _add(*numbers: float) -> float:
    """Return the sum of numbers, for `${add:...}` in a YAML."""
    return sum(numbers)
