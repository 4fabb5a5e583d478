"""Strategies over ranks: what each does with the model, and one way to write and read checkpoints for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from visllama.checkpoint.folder import read_rest, write_checkpoint
from visllama.checkpoint.state import read_tensors, state_of
from visllama.config.instantiate import build
from visllama.config.schema import TrainerSettings
from visllama.errors import ConfigError
from visllama.machine.devices import count_ranks, find_device
from visllama.model.sharding import reshard, shard
from visllama.model.visllama import VisLlama


class _OfOurs:
    """What all strategies here have: checkpoints of what is trained alone, which any of them can read.

    Attributes:
        control: The group over which ranks agree on numbers that lie on the CPU: a GPU need not be waited for.
        is_sharded: Whether the model has to be made on every rank by `prepare`.
    """

    control: dist.ProcessGroup | None = None
    is_sharded = False
    # A checkpoint is read in place, into a model and an optimizer that are where they will be.
    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = False

    def setup_environment(self) -> None:
        super().setup_environment()
        if dist.is_available() and dist.is_initialized():
            self.control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        """Put a model with its weights where this strategy wants it."""

    def teardown(self) -> None:
        if any(p.is_meta for p in self.lightning_module.parameters()):
            self._lightning_module = None  # nothing was loaded, and nothing is to be moved: the error tells why
        super().teardown()

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every rank; on the CPU, so no GPU is waited for."""
        if self.control is None:
            return [list(values)]
        mine = torch.tensor(values)
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(found, mine, group=self.control)
        return [each.tolist() for each in found]

    def lightning_module_state_dict(self) -> dict:
        return {}  # `save_checkpoint` takes tensors from where they are

    def load_model_state_dict(self, checkpoint: Mapping, strict: bool = True) -> None:
        pass  # `load_checkpoint` has

    def optimizer_state(self, optimizer: object) -> dict:
        return {}

    def load_optimizer_state_dict(self, checkpoint: Mapping) -> None:
        pass

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: Any = None) -> None:
        tensors, groups = state_of(self.lightning_module.model, self.optimizers[0])
        write_checkpoint(Path(filepath), tensors, checkpoint | {"optimizer_groups": groups}, self.control)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict:
        """Read the checkpoint that the first rank has chosen, into model and optimizer."""
        path = Path(self.broadcast(str(checkpoint_path)))
        rest = read_rest(path)
        read_tensors(path, self.lightning_module.model, self.optimizers[0], rest.pop("optimizer_groups"), self.control)
        return rest


class SingleDevice(_OfOurs, SingleDeviceStrategy):
    """One device."""


def _patience(timeout_s: float) -> timedelta:
    """How long ranks wait for each other to start, and for a collective: `HangWatch` is to end a hang first."""
    return timedelta(seconds=max(timeout_s + 60, 300))


class DDP(_OfOurs, DDPStrategy):
    """The whole model on every rank; the gradients of what is trained are summed.

    Args:
        timeout_s: A rank that does nothing for so long is ended.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        super().__init__(timeout=_patience(timeout_s), broadcast_buffers=False)

    def setup(self, trainer: object) -> None:
        super().setup(trainer)
        # Each rank's loss is its part of one sum, so gradients are summed too. DDP would average them, and divides by
        # three ranks in single precision, whatever the gradients' own.
        if isinstance(self.model, DistributedDataParallel):  # where it trains
            self.model.register_comm_hook(None, _sum_gradients)


def _sum_gradients(_, bucket):  # DDP wants no annotations but its own
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


class FSDP(_OfOurs, ModelParallelStrategy):
    """FSDP2: of every tensor, each rank keeps its part, and a block is whole only while it computes.

    Args:
        timeout_s: A rank that does nothing for so long is ended.

    Reference:
        Zhao et al. 2023, arXiv:2304.11277.
    """

    is_sharded = True

    def __init__(self, timeout_s: float = 1800.0) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, timeout=_patience(timeout_s))

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        shard(model, self.device_mesh["data_parallel"], dtype)

    def on_validation_end(self) -> None:
        # Behind a forward without gradients the root stays gathered, and its tensors are not those to hash or to save.
        reshard(self.lightning_module.model)

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: Any = None) -> None:
        reshard(self.lightning_module.model)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients be added up before they are reduced, as DDP's `no_sync`."""
        model = self.lightning_module.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def build_strategy(trainer: TrainerSettings, plugins: Sequence[str] = ()) -> Strategy:
    """Make the strategy of the `trainer` group; "auto" is one device, or DDP over several.

    Raises:
        ConfigError: If it is none of ours, whose checkpoints no other writes.
    """
    num_nodes, num_devices = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    config = trainer.strategy
    if config != "auto":
        strategy = build({"timeout_s": trainer.timeout_s, **config}, plugins)
        if not isinstance(strategy, _OfOurs):
            raise ConfigError(
                f"trainer.strategy._target_={config['_target_']}: checkpoints are written by visllama.parallel."
                f"strategy.DDP and FSDP: derive yours from one of them, or choose trainer/strategy=ddp"
            )
        return strategy
    if num_nodes * num_devices > 1:
        return DDP(trainer.timeout_s)
    device, chosen = find_device(trainer.accelerator), trainer.devices
    index = chosen[0] if isinstance(chosen, list) else 0
    return SingleDevice(torch.device(device.type, index) if device.type != "cpu" else device)
