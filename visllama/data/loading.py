"""Load Steps in other processes, and hand each to the rank (the training process) whole, or with the reason why not.

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
from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import NamedTuple, cast

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
    """An iterable of Steps, each built of the samples at given positions of a dataset.

    Each `iter()` starts new loading processes, and goes through `batches` again (a generator can be gone through once).

    Args:
        samples: A dataset that returns the Sample at a position.
        batches: For each Step, the positions of its samples.
        collator: Builds the Steps.
        num_workers: Number of processes that load; 0 loads in this process.
    """

    def __init__(self, samples: Dataset, batches: Iterable[list[int]], collator: Collator, num_workers: int) -> None:
        self.batches = batches
        self.num_workers = num_workers
        # In a loading process, a Step is packed as well.
        collate = partial(_hand_over, collator, num_workers) if num_workers else collator.step
        self._loader = DataLoader(
            samples,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=preemption.heed_parent_alone,
        )

    def __len__(self) -> int:
        # Lightning asks whether there is a length; batches that are a generator have none, and raise a TypeError.
        return len(cast("Sized", self.batches))

    def __iter__(self) -> Iterator[Step]:
        """Start the loading processes at once, and return an iterator of the Steps, in the order of `batches`.

        Raises:
            ConfigError: While iterating, if a loading process has ended, or a Step cannot be handed over through shared
                memory. The message names the reason and what to change.
        """
        # Not in the generator itself, which would start them with its first Step only.
        return self._steps(iter(self._loader))

    def _steps(self, loaded: Iterator) -> Iterator[Step]:
        if not self.num_workers:
            yield from loaded
            return

        failure = None
        try:
            for step in loaded:
                yield self._take_over(step)
        except ConfigError as error:
            # Out of a loading process it comes wrapped in that process's traceback: its own text is behind its name.
            _, _, message = str(error).strip().rpartition(f"{type(error).__name__}: ")
            failure = ConfigError(message)
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
            raise ConfigError(_what_to_set(self.num_workers, "cannot be taken over", error)) from error


class Packed(NamedTuple):
    """A Step whose tensors are joined into one tensor for each dtype, so that handing it over opens few files."""

    flat: dict[torch.dtype, Tensor]
    """For each dtype, all tensors of it, flattened and joined in the order of `layout`, in shared memory."""
    layout: list[dict[str, tuple[torch.dtype, torch.Size]]]
    """For each micro-batch, and at last for the dummy batch, the dtype and shape of each tensor, by name."""
    rest: Mapping
    """The Step without `micro_batches` and `dummy`: its counts and names, unchanged."""


def pack(step: Step) -> Packed:
    """Return a Step with its tensors copied into shared memory, joined into one tensor for each dtype.

    The Step itself is not changed. `unpack` makes a Step of the result again.

    Raises:
        RuntimeError: If shared memory has no room for the tensors, or the process may open no more files.
    """
    layout = []
    pieces: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensors in _tensors(step):
        layout.append({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        for tensor in tensors.values():
            pieces[tensor.dtype].append(tensor.reshape(-1))

    flat = {dtype: torch.cat(flattened).share_memory_() for dtype, flattened in pieces.items()}
    rest = {key: value for key, value in step.items() if key not in ("micro_batches", "dummy")}
    return Packed(flat, layout, rest)


def _tensors(step: Step) -> list[dict[str, Tensor]]:
    """Return the tensors of a Step's batches by name; the last batch is the dummy."""
    batches = [*step["micro_batches"], step["dummy"]]
    return [cast("dict[str, Tensor]", batch) for batch in batches]


def unpack(packed: Packed) -> Step:
    """Return the Step from which `pack` made `packed`; its tensors are views of the shared memory, without a copy."""
    # How far the tensor of each dtype has been taken: `pack` joined the pieces in the order of the layout.
    ends = dict.fromkeys(packed.flat, 0)
    batches = []
    for batch_layout in packed.layout:
        tensors = {}
        for name, (dtype, shape) in batch_layout.items():
            start = ends[dtype]
            ends[dtype] += shape.numel()
            piece = packed.flat[dtype][start : ends[dtype]]
            tensors[name] = piece.view(shape)

        batches.append(cast("Batch", tensors))

    *micro_batches, dummy = batches
    return Step(micro_batches=micro_batches, dummy=dummy, **packed.rest)


def _hand_over(collator: Collator, num_workers: int, samples: list) -> bytes:
    """Build a Step in a loading process, and return the pickled handle of its shared memory, for `Loader._take_over`.

    Raises:
        ConfigError: If shared memory has no room for the Step, or no file can be opened.
    """
    step = collator.step(samples)

    try:
        # Pickled here, in the main thread: in the thread of torch's queue, an error would only be printed.
        return bytes(ForkingPickler.dumps(pack(step)))
    except (OSError, RuntimeError) as error:
        num_bytes = sum(tensor.nbytes for tensors in _tensors(step) for tensor in tensors.values())
        problem = f"of {num_bytes / 2**20:.1f} MiB cannot be handed over"
        raise ConfigError(_what_to_set(num_workers, problem, error)) from error


def _what_to_set(num_workers: int, problem: str, error: Exception) -> str:
    """Return the message for a Step that did not come through shared memory: the reason, and what to change."""
    lines = str(error).splitlines()
    reason = lines[0] if lines else type(error).__name__

    # Without a free descriptor, Python's error speaks of "ancdata", in which descriptors are handed over.
    if "Too many open files" in reason or "ancdata" in reason:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        remedy = f"raise `ulimit -n` (it is {limit})"
    elif _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free / 2**20
        remedy = f"make {_SHARED_MEMORY} larger ({free:.0f} MiB of it are free; docker's --shm-size)"
    else:
        remedy = "free shared memory"

    return (
        f"data.num_workers={num_workers}: a step {problem} by a loading process ({reason}): "
        f"{remedy}, lower stage.global_batch_size, or set data.num_workers=0"
    )


def explain_killed(error: RuntimeError) -> ConfigError | None:
    """Return a ConfigError that tells the user what to change, if torch's error says that a loading process has ended.

    Returns:
        The error to raise in place of `error`; None if `error` is about anything else.
    """
    message = str(error)
    if not message.startswith(_KILLED):
        return None

    reason = message.splitlines()[0].rstrip(". ")
    return ConfigError(
        f"data.num_workers: a loading process has ended, and nothing more can be loaded ({reason}): most "
        f"often the machine has no memory left: lower data.num_workers, or set it to 0"
    )
