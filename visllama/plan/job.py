"""`Job`: the ranks, batches, strategy and precision of a training, read from a config.

A *rank* is one process with one GPU, and a *node* is one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from visllama.config.schema import PlanConfig
from visllama.training.optimizer_states import measure_states


class Precision(NamedTuple):
    """The bytes that one number takes in frozen weights, in trained weights and in dropout's mask.

    Attributes:
        frozen: Bytes of a number of frozen weights.
        trained: Bytes of a number of trained weights, their gradients and the optimizer's state.
        is_mixed: Whether products with trained weights are computed in the precision of frozen ones too (autocast).
        mask: Bytes of a number of dropout's mask: one on CUDA, those of a trained number on the CPU.
    """

    frozen: int
    trained: int
    is_mixed: bool = False
    mask: int = 1

    @classmethod
    def named(cls, precision: str) -> Precision:
        """Return the `Precision` that a value of `trainer.precision` names; its `mask` is that on CUDA, one byte.

        Args:
            precision: A value of `trainer.precision` other than "auto": "bf16-", "32-" or "64-", followed by "mixed" or
                "true".

        Raises:
            KeyError: If the text before the first "-" is none of "bf16", "32" and "64".
        """
        # What trains is in fp32 at least, whatever the name.
        kind = precision.partition("-")[0]
        frozen = {"bf16": 2, "32": 4, "64": 8}[kind]
        return cls(
            frozen=frozen,
            trained=max(4, frozen),
            is_mixed=precision.endswith("-mixed"),
        )

    def compute(self, is_trained: bool) -> int:
        """Return the bytes of a number in the matrix products of a part of the model.

        Args:
            is_trained: Whether the part trains.
        """
        if is_trained and not self.is_mixed:
            return self.trained
        return self.frozen


@dataclass(frozen=True)
class Job:
    """How a model is trained.

    Attributes:
        num_nodes: Number of machines.
        num_devices: Number of GPUs in each node, with one rank on each.
        global_batch_size: Samples a step, over all ranks.
        micro_batch_size: Greatest number of samples in one forward pass.
        strategy: "one" for a single rank, "ddp" for a whole model on each rank, or "fsdp" for a sharded one.
        precision: Bytes that a number takes in frozen and in trained weights.
        recomputes: Whether the language model's blocks compute their activations again in the backward pass.
        state_bytes: Bytes that the optimizer keeps for each number that trains, and for each tensor that trains: 8 and
            4 for AdamW in fp32.
        updates_in_place: Whether the optimizer's step makes no copies of the parameters that it updates together.
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
        """Number of ranks on all nodes together."""
        return self.num_nodes * self.num_devices

    @property
    def num_shards(self) -> int:
        """Number of slices that each tensor is cut into: the number of ranks with FSDP, else 1."""
        # Under DDP, each rank has a copy of the whole model.
        return self.num_ranks if self.strategy == "fsdp" else 1

    @property
    def num_samples(self) -> int:
        """Greatest number of samples of a rank in a step; if the ranks do not divide the batch, some have one less."""
        # Division that rounds up.
        return -(-self.global_batch_size // self.num_ranks)

    @property
    def most_at_once(self) -> int:
        """Number of samples in a rank's largest forward pass: `micro_batch_size`, or `num_samples` if that is less."""
        return min(self.micro_batch_size, self.num_samples)

    @property
    def num_micro_batches(self) -> int:
        """Number of forward passes of a rank in a step; more than one means that gradients are accumulated."""
        return -(-self.num_samples // self.micro_batch_size)


def job_of(config: PlanConfig) -> tuple[Job, list[str]]:
    """Read from a config how the model is trained, and fill in what the config leaves open.

    A value "auto" is replaced: `trainer.devices` (-1 too) by 8 if the config names a GPU or a strategy, else by 1;
    `trainer.num_nodes` by 1; `trainer.precision` by "32-true" if the accelerator is "cpu" or "mps", else by
    "bf16-mixed". The optimizer takes one step on a small tensor, by which the size of its state is measured.

    Returns:
        The job, and one sentence for each value that was filled in; also one if the accelerator is "cpu" or "mps", for
        which the job is computed as for a GPU.

    Raises:
        ConfigError: If the optimizer cannot be built or cannot take a step.
    """
    trainer = config.trainer
    assumed = []

    devices = trainer.devices
    if isinstance(devices, list):
        devices = len(devices)
    elif devices in ("auto", -1):
        # A GPU or a strategy is chosen for a node of a cluster, which usually has eight.
        is_for_node = trainer.accelerator in ("gpu", "cuda") or trainer.strategy != "auto"
        devices = 8 if is_for_node else 1
        assumed.append(f"trainer.devices={trainer.devices} is taken as {devices}")

    nodes = trainer.num_nodes
    if nodes == "auto":
        nodes = 1
        assumed.append("trainer.num_nodes=auto is taken as 1")

    on_cpu = trainer.accelerator in ("cpu", "mps")
    precision_name = trainer.precision
    if precision_name == "auto":
        precision_name = "32-true" if on_cpu else "bf16-mixed"
        assumed.append(f"trainer.precision=auto is taken as {precision_name}")
    if on_cpu:
        assumed.append(f"trainer.accelerator={trainer.accelerator} is shown as if it were the GPU")

    precision = Precision.named(precision_name)
    bytes_per_number, bytes_per_tensor, in_place = measure_states(config.optim, config.plugins, precision.trained)
    job = Job(
        num_nodes=nodes,
        num_devices=devices,
        global_batch_size=config.stage.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        strategy=strategy_of(config, nodes * devices),
        precision=precision,
        recomputes=trainer.activation_checkpointing,
        state_bytes=(bytes_per_number, bytes_per_tensor),
        updates_in_place=in_place,
    )
    return job, assumed


def strategy_of(config: PlanConfig, num_ranks: int) -> str:
    """Return the strategy that a config means on a number of ranks: "one", "ddp" or "fsdp".

    It is "fsdp" if `trainer.strategy` names FSDP, also on one rank; else "ddp" on several ranks and "one" on one.
    """
    # trainer/strategy=ddp and trainer/strategy=fsdp are nodes that name a class; the default is the word "auto".
    strategy = config.trainer.strategy
    if isinstance(strategy, Mapping) and "FSDP" in strategy["_target_"]:
        return "fsdp"
    return "ddp" if num_ranks > 1 else "one"
