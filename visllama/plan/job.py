"""How a job trains: ranks, batches, strategy, precision; as a config says it, or leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from visllama.config.schema import PlanConfig
from visllama.training.optimizer_states import measure_states


class Precision(NamedTuple):
    """Bytes a number.

    Attributes:
        frozen: Of frozen weights.
        trained: Of trained weights, their gradients and the optimizer's state.
        is_mixed: Whether products with trained weights are in the frozen ones' precision too (autocast).
        mask: Of dropout's mask: CUDA keeps a byte, the CPU a number.
    """

    frozen: int
    trained: int
    is_mixed: bool = False
    mask: int = 1

    @classmethod
    def named(cls, precision: str) -> Precision:
        """Read the name of one."""
        frozen = {"bf16": 2, "32": 4, "64": 8}[precision.partition("-")[0]]
        return cls(frozen, max(4, frozen), precision.endswith("-mixed"))

    def compute(self, is_trained: bool) -> int:
        """Return the bytes of a number in a part's matrix products."""
        return self.trained if is_trained and not self.is_mixed else self.frozen


@dataclass(frozen=True)
class Job:
    """How a model is trained.

    Attributes:
        num_devices: Of each node; a rank each.
        micro_batch_size: Most samples in one forward pass.
        strategy: one, ddp or fsdp.
        recomputes: Whether activations inside blocks are computed again.
        state_bytes: What the optimizer keeps for each number that trains, and for each tensor: 8 and 4 for AdamW.
        updates_in_place: Whether the optimizer's step needs no copy of its group.
    """

    num_nodes: int
    num_devices: int
    global_batch_size: int
    micro_batch_size: int
    strategy: str
    precision: Precision
    recomputes: bool
    state_bytes: tuple[float, int]
    updates_in_place: bool

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.num_devices

    @property
    def num_shards(self) -> int:
        return self.num_ranks if self.strategy == "fsdp" else 1

    @property
    def num_samples(self) -> int:
        """Samples of a rank in a step; where ranks do not divide the batch, some have one less."""
        return -(-self.global_batch_size // self.num_ranks)

    @property
    def most_at_once(self) -> int:
        return min(self.micro_batch_size, self.num_samples)

    @property
    def num_micro_batches(self) -> int:
        return -(-self.num_samples // self.micro_batch_size)


def job_of(config: PlanConfig) -> tuple[Job, list[str]]:
    """Read how a config trains, and say what it left open and was taken how."""
    trainer, said = config.trainer, []
    devices, nodes = trainer.devices, trainer.num_nodes
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1):
        devices = 8 if trainer.accelerator in ("gpu", "cuda") or trainer.strategy != "auto" else 1
        said.append(f"trainer.devices={trainer.devices} is taken as {devices}")
    if nodes == "auto":
        nodes = 1
        said.append("trainer.num_nodes=auto is taken as 1")
    on_cpu = trainer.accelerator in ("cpu", "mps")
    precision = trainer.precision
    if precision == "auto":
        precision = "32-true" if on_cpu else "bf16-mixed"
        said.append(f"trainer.precision=auto is taken as {precision}")
    if on_cpu:
        said.append(f"trainer.accelerator={trainer.accelerator} is shown as if it were the GPU")
    own = Precision.named(precision)
    each, of_tensor, in_place = measure_states(config.optim, config.plugins, own.trained)
    job = Job(
        nodes,
        devices,
        config.stage.global_batch_size,
        config.micro_batch_size,
        strategy_of(config, nodes * devices),
        own,
        trainer.activation_checkpointing,
        (each, of_tensor),
        in_place,
    )
    return job, said


def strategy_of(config: PlanConfig, num_ranks: int) -> str:
    """Return the strategy by what it does with memory: one, ddp, fsdp."""
    chosen = config.trainer.strategy
    if isinstance(chosen, Mapping) and "FSDP" in chosen["_target_"]:
        return "fsdp"
    return "ddp" if num_ranks > 1 else "one"
