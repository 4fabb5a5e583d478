"""Strategies over ranks: where each puts the model, and one form of checkpoints that all of them write and read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from visllama.checkpoint.folder import read_rest, write_checkpoint
from visllama.checkpoint.state import read_tensors, state_of
from visllama.config.instantiate import build
from visllama.config.schema import TrainerSettings
from visllama.errors import ConfigError
from visllama.machine.devices import count_ranks, find_device
from visllama.model.sharding import reshard, shard
from visllama.model.visllama import VisLlama


class VisLlamaStrategy(Strategy):
    """The base of the strategies here: checkpoints hold trained state alone, and any of the strategies can read them.

    It stands before one of Lightning's strategies among the bases of a class.

    Attributes:
        control: The group of ranks that exchanges numbers on the CPU, so that no rank waits for a GPU; None if this
            process is alone.
        is_sharded: Whether each rank keeps only its part of the model, so that every rank has to call `prepare`.
    """

    control: dist.ProcessGroup | None = None
    is_sharded = False

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        # A checkpoint is read in place, into a model and an optimizer that are where they will be.
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return False

    @property
    def trained_model(self) -> VisLlama:
        """The model of the LightningModule to which this strategy is connected."""
        assert self.lightning_module is not None, "Lightning connects its module first"
        return cast(VisLlama, self.lightning_module.model)

    def setup_environment(self) -> None:
        super().setup_environment()
        if dist.is_available() and dist.is_initialized():
            self.control = _find_control_group()

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        """Put a model with its weights where this strategy wants it.

        Args:
            model: The model, its weights loaded.
            dtype: The dtype of frozen weights.
        """

    def teardown(self) -> None:
        module = self.lightning_module
        assert module is not None, "Lightning connects its module first"

        # An error came before the weights were loaded. Lightning would fail to move the tensors without values to the
        # CPU, and its error would hide the first one.
        if any(parameter.is_meta for parameter in module.parameters()):
            self._lightning_module = None

        super().teardown()

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every rank, in the order of ranks; they stay on the CPU, so no GPU is waited for."""
        if self.control is None:
            return [list(values)]

        own_values = torch.tensor(values)
        gathered = [torch.empty_like(own_values) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, own_values, group=self.control)
        return [values_of_rank.tolist() for values_of_rank in gathered]

    # Lightning asks these four for tensors. They stay empty, because `save_checkpoint` takes tensors from where they
    # are, and `load_checkpoint` puts them there.
    def lightning_module_state_dict(self) -> dict:
        return {}

    def load_model_state_dict(self, checkpoint: Mapping, strict: bool = True) -> None:
        pass

    def optimizer_state(self, optimizer: Optimizer) -> dict:
        return {}

    def load_optimizer_state_dict(self, checkpoint: Mapping) -> None:
        pass

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: Any = None) -> None:
        tensors, groups = state_of(self.trained_model, self.optimizers[0])
        rest = checkpoint | {"optimizer_groups": groups}
        write_checkpoint(Path(filepath), tensors, rest, self.control)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict:
        """Read the checkpoint that the first rank has chosen into model and optimizer, and return the rest of it."""
        path = Path(self.broadcast(str(checkpoint_path)))
        rest = read_rest(path)
        groups = rest.pop("optimizer_groups")
        read_tensors(path, self.trained_model, self.optimizers[0], groups, self.control)
        return rest


def _find_control_group() -> dist.ProcessGroup:
    """Return a group of all ranks that exchanges on the CPU: the ranks' own where that does, else a new one."""
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    # Only a process outside a new group is given a number instead, and all ranks are in this one.
    return cast(dist.ProcessGroup, group)


class SingleDevice(VisLlamaStrategy, SingleDeviceStrategy):
    """One device."""


def _patience(timeout_s: float) -> timedelta:
    """Return how long ranks wait for each other, at the start and in a collective: `HangWatch` ends a hang first."""
    return timedelta(seconds=max(timeout_s + 60, 300))


class DDP(VisLlamaStrategy, DDPStrategy):
    """Keep the whole model on every rank, and sum the gradients of the trained tensors over ranks.

    Args:
        timeout_s: Seconds after which a rank that does nothing is ended.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        super().__init__(timeout=_patience(timeout_s), broadcast_buffers=False)

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        # Each rank's loss is its part of one sum, so gradients are summed too. DDP would average them, and divides by
        # three ranks in single precision, whatever the gradients' own. Lightning wraps the model only where it trains.
        if isinstance(self.model, DistributedDataParallel):
            self.model.register_comm_hook(None, _sum_gradients)


# DDP accepts no annotations here but its own.
def _sum_gradients(_, bucket):
    sending = dist.all_reduce(bucket.buffer(), async_op=True)
    return sending.get_future().then(lambda future: future.value()[0])


class FSDP(VisLlamaStrategy, ModelParallelStrategy):
    """Keep on each rank its part of every tensor (FSDP2); a block is whole only while it computes.

    Args:
        timeout_s: Seconds after which a rank that does nothing is ended.

    Reference:
        Zhao et al. 2023, arXiv:2304.11277.
    """

    is_sharded = True

    def __init__(self, timeout_s: float = 1800.0) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, timeout=_patience(timeout_s))

    def setup_environment(self) -> None:
        # Lightning has told the strategy the numbers of devices and nodes only now.
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        assert self.device_mesh is not None, "setup_environment comes first"
        shard(model, self.device_mesh["data_parallel"], dtype)

    def on_validation_end(self) -> None:
        # After a forward without gradients the root stays gathered, and its tensors are not those to hash or to save.
        reshard(self.trained_model)

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: Any = None) -> None:
        reshard(self.trained_model)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Let gradients be added up before they are reduced, as DDP's `no_sync`."""
        # `shard` has made the model one of FSDP2's modules.
        model = cast(FSDPModule, self.trained_model)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def build_strategy(trainer: TrainerSettings, plugins: Sequence[str] = ()) -> VisLlamaStrategy:
    """Build the strategy of the `trainer` group; "auto" is one device, or DDP over several.

    Args:
        trainer: The `trainer` group.
        plugins: The user's packages, of which the strategy may be.

    Raises:
        ConfigError: If the named class is not derived from one here: no other writes checkpoints that a run can read.
    """
    num_nodes, num_devices = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    config = trainer.strategy
    if config != "auto":
        strategy = build({"timeout_s": trainer.timeout_s, **config}, plugins)
        if not isinstance(strategy, VisLlamaStrategy):
            raise ConfigError(
                f"trainer.strategy._target_={config['_target_']}: checkpoints are written by visllama.parallel."
                f"strategy.DDP and FSDP: derive yours from one of them, or choose trainer/strategy=ddp"
            )
        return strategy

    if num_nodes * num_devices > 1:
        return DDP(trainer.timeout_s)
    device = find_device(trainer.accelerator)
    if device.type == "cpu":
        return SingleDevice(device)
    index = trainer.devices[0] if isinstance(trainer.devices, list) else 0
    return SingleDevice(torch.device(device.type, index))
