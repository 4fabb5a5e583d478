"""How Steps come to a rank from the processes that load them: whole, or with the reason why not.

torch hands over each tensor in shared memory of its own, with a file open at both ends for as long as it lives, and a
Step of many micro-batches holds hundreds. It does so in a thread of the loading process, where an error is printed, the
Step is lost, and the rank waits for it for ever. So a Step is packed into one tensor a dtype, and handed over by the
loading process's main thread, whose errors reach the rank. The shared memory bears no name: nothing is left of it,
however the processes end.
"""

from __future__ import annotations

import resource
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visllama.data.collate import Batch, Collator, Step
from visllama.errors import ConfigError
from visllama.machine import preemption

_SHARED_MEMORY = Path("/dev/shm")
_KILLED = "DataLoader worker (pid"
"""How torch's error begins where a loading process has ended; its signal handler raises it anywhere."""


class Loader:
    """Steps of a dataset's samples; it can be gone through again.

    Args:
        samples: A sample for each position.
        batches: The positions of each Step.
        collator: Makes the Steps.
        num_workers: Processes that load; 0 loads in this process.
    """

    def __init__(self, samples: Dataset, batches: Iterable, collator: Collator, num_workers: int) -> None:
        self.batches, self.num_workers = batches, num_workers
        self._loader = DataLoader(
            samples,
            batch_sampler=batches,
            collate_fn=partial(_hand_over, collator, num_workers) if num_workers else collator.step,
            num_workers=num_workers,
            worker_init_fn=preemption.heed_parent_alone,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Step]:
        """Start the loading processes, at once, and return what goes through their Steps.

        Raises:
            ConfigError: If one of them cannot go on, with its reason.
        """
        return self._steps(iter(self._loader))

    def _steps(self, loaded: Iterator) -> Iterator[Step]:
        if not self.num_workers:
            yield from loaded
            return
        failure = None
        try:
            for step in loaded:
                yield self._take_over(step)
        except ConfigError as error:  # out of a loading process it comes wrapped in that process's traceback
            failure = ConfigError(str(error).strip().rpartition(f"{type(error).__name__}: ")[2])
            error.with_traceback(None)  # torch's frames hold the error and `loaded`, and it holds them
        except RuntimeError as error:
            failure = explain_killed(error)
            if failure is None:
                raise
            error.with_traceback(None)
        # Nothing else holds `loaded` now: letting go of it ends the loading processes at once. Left to the garbage
        # collector, its queues may be closed before it, and it waits five seconds for each, in whatever thread.
        del loaded
        if failure is not None:
            raise failure

    def _take_over(self, step: bytes) -> Step:
        try:
            # Bytes that a process of ours has just written; torch's own queue reads them by the same function.
            return unpack(ForkingPickler.loads(step))
        except (OSError, RuntimeError) as error:
            raise ConfigError(_say_what_to_set(self.num_workers, "cannot be taken over", error)) from error


class Packed(NamedTuple):
    """A Step in few tensors."""

    flat: dict[torch.dtype, Tensor]
    """All tensors of a dtype, one after the other, in shared memory."""
    layout: list[dict[str, tuple[torch.dtype, torch.Size]]]
    """The dtypes and shapes of each micro-batch's tensors, by name; the last is the dummy's."""
    rest: Mapping
    """What else the Step holds."""


def pack(step: Step) -> Packed:
    """Put the tensors of a Step into shared memory, one piece a dtype.

    Raises:
        RuntimeError: If there is no room for them, or no file can be opened.
    """
    batches = [*step["micro_batches"], step["dummy"]]
    layout = [{name: (tensor.dtype, tensor.shape) for name, tensor in batch.items()} for batch in batches]
    pieces: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for batch in batches:
        for tensor in batch.values():
            pieces[tensor.dtype].append(tensor.reshape(-1))
    flat = {dtype: torch.cat(tensors).share_memory_() for dtype, tensors in pieces.items()}
    return Packed(flat, layout, {key: value for key, value in step.items() if key not in ("micro_batches", "dummy")})


def unpack(packed: Packed) -> Step:
    """Return the Step that was packed; its tensors are views of the shared ones."""
    ends = dict.fromkeys(packed.flat, 0)
    batches = []
    for described in packed.layout:
        batch = Batch()
        for name, (dtype, shape) in described.items():
            start = ends[dtype]
            ends[dtype] += shape.numel()
            batch[name] = packed.flat[dtype][start : ends[dtype]].view(shape)
        batches.append(batch)
    *micro_batches, dummy = batches
    return Step(micro_batches=micro_batches, dummy=dummy, **packed.rest)


def _hand_over(collator: Collator, num_workers: int, samples: list) -> bytes:
    """Make a Step, in a loading process, and write down where the rank finds it."""
    step = collator.step(samples)
    try:
        return bytes(ForkingPickler.dumps(pack(step)))
    except (OSError, RuntimeError) as error:
        batches = [*step["micro_batches"], step["dummy"]]
        mib = sum(tensor.nbytes for batch in batches for tensor in batch.values()) / 2**20
        raise ConfigError(_say_what_to_set(num_workers, f"of {mib:.1f} MiB cannot be handed over", error)) from error


def _say_what_to_set(num_workers: int, what: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if "Too many open files" in reason or "ancdata" in reason:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        remedy = f"raise `ulimit -n` (it is {limit})"
    elif _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free / 2**20
        remedy = f"make {_SHARED_MEMORY} larger ({free:.0f} MiB of it are free; docker's --shm-size)"
    else:
        remedy = "free shared memory"
    return (
        f"data.num_workers={num_workers}: a step {what} by a loading process ({reason}): "
        f"{remedy}, lower stage.global_batch_size, or set data.num_workers=0"
    )


def explain_killed(error: RuntimeError) -> ConfigError | None:
    """Return what a user is told where a loading process has ended; None for any other error."""
    reason = str(error).splitlines()[0] if str(error).startswith(_KILLED) else None
    if reason is None:
        return None
    return ConfigError(
        f"data.num_workers: a loading process has ended, and nothing more can be loaded ({reason.rstrip('. ')}): most "
        f"often the machine has no memory left: lower data.num_workers, or set it to 0"
    )
