"""The strategies by which ranks train together: on one device, DDP or FSDP; all of them read each other's checkpoints.

A rank is one process of a run, with one device. A strategy is Lightning's object that puts the model on the devices,
exchanges gradients and saves checkpoints.
"""

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
    """The base of the strategies here, which saves trained state alone, in a form that any of them can read.

    A subclass lists it before one of Lightning's strategies: `class Mine(VisLlamaStrategy, DDPStrategy)`.

    Attributes:
        control: The process group of all ranks that exchanges on the CPU, so that no rank waits for a GPU; None if this
            process is alone, and before `setup_environment`.
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

        # Only now is there a process group to exchange in.
        if dist.is_available() and dist.is_initialized():
            self.control = _find_control_group()

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        """Cut a model into the ranks' parts, in place, where the strategy is sharded; here it does nothing.

        A run calls it on every rank after the weights are loaded.

        Args:
            model: The model, with its weights.
            dtype: The dtype that frozen weights are to have.
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
        """Return the integers that every rank has passed, one list for each rank, in the order of ranks.

        All ranks have to call it together, each with the same number of integers. They are exchanged on the CPU, so
        that no GPU is waited for.
        """
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
        """Write the trained tensors, the optimizer's state, and Lightning's own state as a checkpoint folder.

        All ranks call it together. It returns when the checkpoint is on the disk.

        Args:
            checkpoint: Lightning's state of the training without tensors; it is not changed.
            filepath: The folder to write, `RUN/checkpoints/step_NNNNNNNN`.
            storage_options: Not used.

        Raises:
            SaveFailed: On all ranks, if one of them cannot write.
        """
        tensors, groups = state_of(self.trained_model, self.optimizers[0])
        rest = checkpoint | {"optimizer_groups": groups}
        write_checkpoint(Path(filepath), tensors, rest, self.control)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict:
        """Read a checkpoint into the model and the optimizer, in place, and return the rest of its training state.

        All ranks call it together, and read the path that the first rank has passed.

        Args:
            checkpoint_path: The folder of the checkpoint; that of the first rank counts.
            weights_only: Not used: no code in a checkpoint is ever run.

        Raises:
            ConfigError: If the checkpoint is damaged, or its tensors are not those of this model.
        """
        # Only the first rank has checked the checkpoints for damage.
        path = Path(self.broadcast(str(checkpoint_path)))
        rest = read_rest(path)
        groups = rest.pop("optimizer_groups")

        read_tensors(path, self.trained_model, self.optimizers[0], groups, self.control)
        return rest


def _find_control_group() -> dist.ProcessGroup:
    """Return a process group of all ranks that exchanges on the CPU: the default one if it is gloo, else a new one."""
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    # Only a process outside a new group is given a number instead, and all ranks are in this one.
    return cast(dist.ProcessGroup, group)


class SingleDevice(VisLlamaStrategy, SingleDeviceStrategy):
    """Train on one device, in this process alone.

    Args:
        device: The device, or its name, as Lightning's `SingleDeviceStrategy` takes it.
    """


def _patience(timeout_s: float) -> timedelta:
    """Return how long a rank waits for the others at the start and in a collective, before torch raises an error.

    It is longer than `timeout_s`, so that `HangWatch`, which writes the stacks, ends a hung rank first.
    """
    return timedelta(seconds=max(timeout_s + 60, 300))


class DDP(VisLlamaStrategy, DDPStrategy):
    """Train with the whole model on every rank, and the gradients of the trained tensors summed over ranks.

    Args:
        timeout_s: The value of `trainer.timeout_s`, in seconds. A rank waits a minute longer than that for the others,
            and five minutes at least.
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
    """Train with every tensor cut over the ranks (FSDP2); a block of the model is whole only while it computes.

    Args:
        timeout_s: The value of `trainer.timeout_s`, in seconds. A rank waits a minute longer than that for the others,
            and five minutes at least.

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
        """Cut every tensor of a model over all ranks, in place; all ranks call it together.

        Args:
            model: The model, with its weights in the dtypes of their files (`load_base_weights(as_stored=True)`).
            dtype: The dtype that frozen weights get; a part that trains gets it, or fp32 if that is wider.

        Raises:
            ConfigError: If the language model does not name the classes of its blocks, at which it would be cut.
        """
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
        """Return a context manager in which a backward adds gradients up on each rank, and exchanges none.

        The first backward after it exchanges the sums. DDP's `no_sync` does the same.
        """
        # `shard` has made the model one of FSDP2's modules.
        model = cast(FSDPModule, self.trained_model)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def build_strategy(trainer: TrainerSettings, plugins: Sequence[str] = ()) -> VisLlamaStrategy:
    """Build the strategy of a config's `trainer` group.

    For `trainer.strategy` "auto" it is `DDP` if there is more than one rank over all nodes, else `SingleDevice`: on the
    CPU, or on the GPU whose index is the only one in `trainer.devices` (0 where that is no list). Otherwise it is the
    class of `trainer.strategy._target_`, called with the node's other values, and with `timeout_s` if it has none.

    Args:
        trainer: The `trainer` group.
        plugins: The names of the user's packages, in which the strategy's class may be.

    Raises:
        ConfigError: If the class is not allowed or does not exist; if it is not derived from `VisLlamaStrategy`, since
            no other class writes checkpoints that a run can read; or if torchrun or srun has started another number of
            ranks than the group names.
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
