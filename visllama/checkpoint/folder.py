"""Write, check, read and remove a run's checkpoints: one folder for each saved step, whole or not there at all.

A folder `step_00001200/` holds the trained tensors and the optimizer's state in safetensors (one file for each rank
that had something to write; any number of ranks can read them), the rest of the training state in `rest.pt`, and the
size and SHA-256 of each file in `COMPLETE`. A checkpoint is written as `.step_00001200`, flushed to the disk, and then
renamed: a folder of any other name is no checkpoint. A run keeps its checkpoints in `RUN/checkpoints/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter

from visllama.errors import ConfigError
from visllama.files import flush, open_regular, read_regular

COMPLETE = "COMPLETE"
"""The file that lists all others of a checkpoint, written last."""
REST = "rest.pt"
"""The file with the training state that is no tensor of the model or the optimizer: loops, callbacks, schedule."""
_NAME = re.compile(r"step_(\d{8,})")
_VERSION = 1
"""The version of the folder's layout."""
_MOST_COMPLETE_BYTES = 2**24
"""A larger `COMPLETE` is not read: it cannot be ours."""
_BLOCK_BYTES = 2**20
"""Bytes that are hashed at once."""


class _FileEntry(TypedDict):
    """The entry of a file in `COMPLETE`."""

    bytes: int
    sha256: str


class Checkpoint(NamedTuple):
    """A checkpoint on the disk, which may be damaged.

    Attributes:
        step: The number of optimizer steps after which it was saved.
        path: Its folder.
    """

    step: int
    path: Path


class SaveFailed(ConfigError):
    """Raised if a checkpoint cannot be written; the checkpoints from before are unchanged."""


def name_of(step: int) -> str:
    """Return the name, without a path, of the checkpoint folder of a step: `step_00001200` for 1200."""
    return f"step_{step:08d}"


def checkpoints(run: Path) -> list[Checkpoint]:
    """Return all checkpoints in a run's folder, by step from the last to the first; their files are not read.

    Args:
        run: The run's folder, whose `checkpoints/` is listed. If that is missing, the result is an empty list.
    """
    existing = []
    folder = run / "checkpoints"
    for path in folder.glob("step_*"):
        match = _NAME.fullmatch(path.name)
        if match:
            step = int(match[1])
            existing.append(Checkpoint(step, path))

    return sorted(existing, reverse=True)


def newest_whole(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return a run's undamaged checkpoint of the latest step, and a description of the damage of each later one.

    Checkpoints are read in full, as `find_damage` does, from the latest one back to the first that is undamaged.

    Args:
        run: The run's folder.

    Returns:
        The checkpoint, or None if the run has no checkpoint at all; and one text for each damaged checkpoint.

    Raises:
        ConfigError: If all of the run's checkpoints are damaged.
    """
    descriptions = []
    for checkpoint in checkpoints(run):
        damage = find_damage(checkpoint.path)
        if damage is None:
            return checkpoint, descriptions
        descriptions.append(f"{checkpoint.path}: {damage}")

    if not descriptions:
        return None, []
    listed = "; ".join(descriptions)
    raise ConfigError(
        f"resume={run}: none of its checkpoints is whole ({listed}): begin anew under another name=, or from its "
        f"weights/ by init_from="
    )


def find_damage(path: Path) -> str | None:
    """Return a short text about a checkpoint's damage, such as "rest.pt is missing"; None if it is undamaged.

    Every file is read in full and compared with `COMPLETE`, the list of a checkpoint's files. A checkpoint is
    damaged if `COMPLETE` is missing, unreadable or of another version, or if a file that it lists is missing or has
    another size or SHA-256. Nothing is raised.

    Args:
        path: The folder of the checkpoint.
    """
    try:
        text = read_regular(path / COMPLETE, _MOST_COMPLETE_BYTES)
        complete = json.loads(text)
        version = complete["version"]
        expected = _read_entries(complete["files"])
    except FileNotFoundError:
        return f"has no {COMPLETE}"
    # A damaged byte can turn any value of the JSON into another type.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return f"{COMPLETE} is not what was written ({error})"

    if version != _VERSION:
        return f"is of version {version}, this visllama reads {_VERSION}"

    # Names without a slash: no file outside the checkpoint is read.
    are_plain_names = all(re.fullmatch(r"[\w.\-]+", name) for name in expected)
    if REST not in expected or not are_plain_names:
        return f"{COMPLETE} names other files than a checkpoint has"

    # Hashing lets other threads run, so the files are read at the same time.
    files = [path / name for name in expected]
    with ThreadPoolExecutor(8) as pool:
        entries = pool.map(_measure, files)
        for (name, wanted), actual in zip(expected.items(), entries, strict=True):
            damage = _compare(name, wanted, actual)
            if damage is not None:
                return damage

    return None


def _compare(name: str, wanted: _FileEntry, actual: _FileEntry | None) -> str | None:
    """Return the damage of one file as text, where `actual` is None if it cannot be read; None if it is undamaged."""
    if actual is None:
        return f"{name} is missing"

    num_bytes = actual["bytes"]
    num_wanted = wanted["bytes"]
    if num_bytes != num_wanted:
        return f"{name} has {num_bytes:,} bytes of {num_wanted:,}"

    if actual["sha256"] != wanted["sha256"]:
        return f"{name} is not what was written: its SHA-256 differs"
    return None


def _read_entries(files: Any) -> dict[str, _FileEntry]:
    """Return the entries of `COMPLETE` by file name, each value converted to its type."""
    entries = {}
    for name, entry in files.items():
        num_bytes = int(entry["bytes"])
        sha256 = str(entry["sha256"])
        entries[str(name)] = _FileEntry(bytes=num_bytes, sha256=sha256)
    return entries


def _measure(path: Path) -> _FileEntry | None:
    """Return the size and SHA-256 of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    size = 0

    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except (OSError, ValueError):
        return None

    return _FileEntry(bytes=size, sha256=digest.hexdigest())


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Shaped[Tensor, "*_"]],
    rest: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint, each rank its own part of the tensors; all ranks of `group` have to call it together.

    It returns when the checkpoint is flushed to the disk. A checkpoint of the same path is replaced.

    Args:
        path: The folder of the checkpoint, `RUN/checkpoints/step_NNNNNNNN`. Folders above it are made.
        tensors: This rank's tensors by name, as `state_of` returns them: trained weights and the optimizer's state.
        rest: All other training state, as plain values that `torch.save` writes; that of the first rank is written.
        group: The ranks that write together; None is this process alone.

    Raises:
        SaveFailed: On all ranks, if one of them cannot write; a checkpoint that was there before is untouched.
    """
    rank = dist.get_rank(group) if group else 0
    temporary = path.with_name(f".{path.name}")
    own_entries: dict[str, _FileEntry] = {}
    entries: dict[str, _FileEntry] = {}

    def prepare() -> None:
        if rank == 0:
            _make_empty(temporary)

    def write() -> None:
        own_entries.update(_write_part(temporary, tensors, rest, rank, group))

    def complete() -> None:
        if rank == 0:
            _complete(path, temporary, entries)

    # Each of these ends with a message from all ranks, so no rank writes into a folder that is not there yet, and
    # none leaves while another still writes.
    _together(path, group, prepare)
    _together(path, group, write)
    for entries_of_rank in _gather(own_entries, group):
        entries.update(entries_of_rank)
    _together(path, group, complete)


def _make_empty(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _write_part(
    temporary: Path, tensors: Mapping[str, Tensor], rest: Mapping, rank: int, group: dist.ProcessGroup | None
) -> dict[str, _FileEntry]:
    """Write the files of this rank, flush them to the disk, and return their entries by name."""
    _save_tensors(temporary, tensors, group)

    # torch's writer names the files of a rank by its number from 1.
    own_files = list(temporary.glob(f"shard-{rank + 1:05d}-*"))
    if rank == 0:
        rest_file = temporary / REST
        with open(rest_file, "wb") as file:
            torch.save(dict(rest), file)
        own_files.append(rest_file)

    entries = {}
    for own_file in own_files:
        flush(own_file)

        entry = _measure(own_file)
        if entry is None:
            raise OSError(f"{own_file.name} cannot be read back")
        entries[own_file.name] = entry
    return entries


def _save_tensors(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def _complete(path: Path, temporary: Path, entries: Mapping[str, _FileEntry]) -> None:
    """Write `COMPLETE` into the temporary folder, and rename the folder to the checkpoint's path."""
    sorted_entries = dict(sorted(entries.items()))
    content = {"version": _VERSION, "files": sorted_entries}
    complete_file = temporary / COMPLETE
    with open(complete_file, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    flush(complete_file)
    flush(temporary)

    # An earlier run in this folder, which was not resumed, may have left one of the same step.
    discard(path)
    os.replace(temporary, path)
    flush(path.parent)


def _gather(value: Any, group: dist.ProcessGroup | None) -> list:
    """Return the values of all ranks of a group, in the order of ranks; all of them call this together."""
    if group is None:
        return [value]

    gathered: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def _together(path: Path, group: dist.ProcessGroup | None, work: Callable[[], object]) -> None:
    """Call `work` on this rank, wait for all ranks of the group, and raise on all of them if it failed on one.

    Raises:
        SaveFailed: With the reason of the first rank that failed.
    """
    cause: BaseException | None = None
    reason: str | None = None
    try:
        work()
    # torch raises this on all ranks for what any of them has raised. It is not derived from Exception.
    except CheckpointException as error:
        cause = error
        first_failure = next(iter(error.failures.values()))
        reason = str(first_failure[0])
    except Exception as error:
        cause = error
        reason = str(error) or type(error).__name__

    reasons = [each for each in _gather(reason, group) if each is not None]
    if reasons:
        # One rank removes what is half written: all of them see the same folder.
        is_first = group is None or dist.get_rank(group) == 0
        if is_first:
            temporary = path.with_name(f".{path.name}")
            shutil.rmtree(temporary, ignore_errors=True)

        run = path.parent.parent
        earlier = checkpoints(run)
        last = f"the last good one is {earlier[0].path.name}" if earlier else "there is no earlier one"
        raise SaveFailed(f"{path.parent}: no checkpoint can be written there ({reasons[0]}); {last}") from cause


def read_rest(path: Path) -> dict:
    """Return what `write_checkpoint` got as `rest`: the training state that is no tensor of the model or the optimizer.

    Only `rest.pt` is read. Tensors in it are put on the CPU, and no code in it is run.

    Args:
        path: The folder of the checkpoint.

    Raises:
        ConfigError: If the file is missing or damaged, or holds objects other than tensors and plain values.
    """
    try:
        return torch.load(path / REST, map_location="cpu", weights_only=True)
    # torch raises many kinds of exceptions on damaged files.
    except Exception as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(f"{path}: no checkpoint to go on from ({reason})") from error


def read_loader_state(path: Path) -> dict:
    """Return the position in the training data at which a checkpoint was saved; only its `rest.pt` is read.

    Args:
        path: The folder of the checkpoint.

    Returns:
        A dictionary of `samples_seen`, the number of samples that all ranks together had trained on, and `rests_on`,
        the settings that fix the order of samples, by name; `check_order` compares them with those of the resumed run.

    Raises:
        ConfigError: If the file is missing or damaged, or does not hold the position.
    """
    rest = read_rest(path)

    try:
        # Lightning saves one state for each data loader, and a run has one.
        (state,) = rest["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        position = {name: state[name] for name in ("samples_seen", "rests_on")}
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: no checkpoint to go on from: its {REST} does not hold the position in the data"
        ) from error

    return position


def discard(path: Path) -> None:
    """Remove a checkpoint's folder; a process that is killed meanwhile leaves no half of one under its name.

    Nothing is done if the folder does not exist.
    """
    if path.exists():
        # Renaming is one operation on the disk; removing many files is not.
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)

        shutil.rmtree(hidden, ignore_errors=True)


def keep_newest(run: Path, count: int) -> None:
    """Remove all checkpoints of a run but the `count` of the latest steps; damaged ones are counted too.

    Args:
        run: The run's folder.
        count: The number of checkpoints to keep.
    """
    older = checkpoints(run)[count:]
    for checkpoint in older:
        discard(checkpoint.path)


def drop_newer(run: Path, step: int) -> None:
    """Remove a run's checkpoints of steps later than `step`: a run that resumes from `step` writes them again.

    Args:
        run: The run's folder.
        step: The number of optimizer steps; its own checkpoint stays.
    """
    for checkpoint in checkpoints(run):
        if checkpoint.step > step:
            discard(checkpoint.path)


def remove_leftovers(run: Path) -> None:
    """Remove the folders of half-written and half-removed checkpoints that a killed process has left.

    Args:
        run: The run's folder; no process may be writing a checkpoint there.
    """
    folder = run / "checkpoints"
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
