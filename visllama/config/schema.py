"""The configuration: where it lies, and its schemas."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from visllama.machine.ranks import on_first_rank, run_id, run_key


def conf_dir() -> Path:
    """Give the folder of YAML files: `visllama/conf` in a wheel, `conf/` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


# ---------------------------------------------------------------------------------------------------- root schema


@dataclass
class StageSchema:
    """What a stage is: values only."""

    trainable: list[str] = MISSING
    global_batch_size: int = MISSING
    epochs: float = MISSING
    num_samples: int | None = None
    max_text_tokens: int = MISSING
    prompt: str = MISSING
    template: Any = MISSING


@dataclass
class DataSchema:
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
class TrainerSchema:
    """Where and how long a run computes."""

    accelerator: str = MISSING
    devices: Any = MISSING
    num_nodes: Any = MISSING
    precision: str = MISSING
    max_steps: int | None = None
    val_fraction: float | None = None
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
class EvaluationSchema:
    """What is judged, and how."""

    task: str = MISSING
    split: str = MISSING
    source: dict[str, Any] = MISSING
    metrics: list[str] = MISSING
    controls: list[str] = field(default_factory=list)
    batch_size: int = MISSING
    prompt: str | None = None
    template: Any = None
    decoding: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunSchema:
    """What every verb has."""

    name: str = MISSING
    seed: int = 1
    plugins: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainSchema(RunSchema):
    micro_batch_size: int = MISSING
    judge: bool = True
    objective: str | None = None
    check_only: bool = False
    resume: str | None = None
    init_from: str | None = None
    model: dict[str, Any] = MISSING
    data: DataSchema = field(default_factory=DataSchema)
    evaluation: dict[str, EvaluationSchema] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    stage: StageSchema = field(default_factory=StageSchema)
    optim: dict[str, Any] = MISSING
    trainer: TrainerSchema = field(default_factory=TrainerSchema)
    logger: dict[str, Any] = MISSING


@dataclass
class InspectSchema(TrainSchema):
    """What `train` has, and how much is looked at."""

    samples: int = MISSING
    num_samples: int = MISSING


@dataclass
class PlanSchema(TrainSchema):
    """What `train` has, and where it would run."""

    gpu: str = MISSING
    utilisation: float = MISSING
    network_gb_s: float = MISSING
    text_tokens: float | None = None
    samples: int | None = None
    out: str | None = None


@dataclass
class EvaluateSchema(RunSchema):
    weights: str | None = None
    predictions: str | None = None
    references: str | None = None
    questions: str | None = None
    evaluation: dict[str, EvaluationSchema] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSchema = field(default_factory=TrainerSchema)


@dataclass
class CaptionSchema(RunSchema):
    weights: str = MISSING
    images: Any = MISSING
    json: bool = False
    batch_size: int = 32
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerSchema = field(default_factory=TrainerSchema)


@dataclass
class PrepareSchema(RunSchema):
    """What every source has; the keys of each come with its YAML, and `prepare/keys.py` checks them."""

    name: str | None = None
    source: str = MISSING
    out: str | None = None


@dataclass
class BenchmarkSchema(RunSchema):
    what: str = MISSING
    size: str = MISSING


def register() -> None:
    """Make schemas and resolvers known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in (
        ("train_schema", TrainSchema),
        ("evaluate_schema", EvaluateSchema),
        ("caption_schema", CaptionSchema),
        ("benchmark_schema", BenchmarkSchema),
    ):
        store.store(name=name, node=schema)
    for name, schema in (("inspect_schema", InspectSchema), ("plan_schema", PlanSchema)):
        extending = OmegaConf.structured(schema)
        for key in TrainSchema.__dataclass_fields__:
            extending[key] = MISSING  # it is merged over what `train` composed, whose values stand
        store.store(name=name, node=extending)
    store.store(name="prepare_schema", node=OmegaConf.structured(PrepareSchema, flags={"struct": False}))
    OmegaConf.register_new_resolver("run_id", run_id, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("on_first_rank", on_first_rank, replace=True)
    OmegaConf.register_new_resolver("run_key", run_key, replace=True)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
