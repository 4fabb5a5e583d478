"""Checkpoints to go on from: a folder a step, written whole or not at all, checked before it is read.

`step_00001200/` holds what is trained and the optimizer's state in safetensors (a file a rank that had something to
write: any number of ranks reads them), all else of the training state in `rest.pt`, and in `COMPLETE` the size and
SHA-256 of each file. Under any other name a folder is none: it is written as `.step_00001200`, flushed to the disk, and
then renamed.
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
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter

from visllama.errors import ConfigError
from visllama.files import flush, open_regular, read_regular

COMPLETE, REST = "COMPLETE", "rest.pt"
_NAME = re.compile(r"step_(\d{8,})")
_VERSION = 1
_MOST_COMPLETE_BYTES = 2**24


class Checkpoint(NamedTuple):
    """A checkpoint on the disk."""

    step: int
    path: Path


class SaveFailed(ConfigError):
    """A checkpoint could not be written; those before are as they were."""


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def checkpoints(run: Path) -> list[Checkpoint]:
    """Return a run's checkpoints, the newest first, whether whole or not."""
    found = [(_NAME.fullmatch(path.name), path) for path in (run / "checkpoints").glob("step_*")]
    return sorted((Checkpoint(int(match[1]), path) for match, path in found if match), reverse=True)


def newest_whole(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return a run's newest checkpoint that is as it was written, and tell what is wrong with newer ones.

    Raises:
        ConfigError: If there are some, and none is whole.
    """
    damaged = []
    for checkpoint in checkpoints(run):
        damage = find_damage(checkpoint.path)
        if damage is None:
            return checkpoint, damaged
        damaged.append(f"{checkpoint.path}: {damage}")
    if damaged:
        raise ConfigError(
            f"resume={run}: none of its checkpoints is whole ({'; '.join(damaged)}): begin anew under another name=, "
            f"or from its weights/ by init_from="
        )
    return None, []


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint: a file that is missing, shorter, or not what was written; else None.

    Every byte of it is read.
    """
    try:
        written = json.loads(read_regular(path / COMPLETE, _MOST_COMPLETE_BYTES))
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in written["files"].items()}
        version = written["version"]
    except FileNotFoundError:
        return f"has no {COMPLETE}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return f"{COMPLETE} is not what was written ({error})"
    if version != _VERSION:
        return f"is of version {version}, this visllama reads {_VERSION}"
    if REST not in files or not all(re.fullmatch(r"[\w.\-]+", name) for name in files):
        return f"{COMPLETE} names other files than a checkpoint has"
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: _describe(path / name), files)
        for (name, expected), actual in zip(files.items(), found, strict=True):
            if actual is None:
                return f"{name} is missing"
            if actual[0] != expected[0]:
                return f"{name} has {actual[0]:,} bytes of {expected[0]:,}"
            if actual != expected:
                return f"{name} is not what was written: its SHA-256 differs"
    return None


def _describe(path: Path) -> tuple[int, str] | None:
    digest, size = hashlib.sha256(), 0
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except (OSError, ValueError):
        return None
    return size, digest.hexdigest()


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint, each rank its own part; all ranks of `group` call it together.

    Raises:
        SaveFailed: On all ranks, if one cannot write; what stood there before is untouched.
    """
    rank, files = dist.get_rank(group) if group else 0, {}
    temporary = path.with_name(f".{path.name}")
    _together(path, group, lambda: rank or _make(temporary))
    _together(path, group, lambda: files.update(_write_part(temporary, tensors, rest, rank, group)))
    described = {name: of for part in _all(files, group) for name, of in part.items()}
    _together(path, group, lambda: rank or _complete(path, temporary, described))


def _make(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _write_part(
    temporary: Path, tensors: Mapping[str, Tensor], rest: Mapping, rank: int, group: dist.ProcessGroup | None
) -> dict[str, dict]:
    _save_tensors(temporary, tensors, group)
    if rank == 0:
        with open(temporary / REST, "wb") as file:
            torch.save(dict(rest), file)
    own = [*temporary.glob(f"shard-{rank + 1:05d}-*"), *([temporary / REST] if rank == 0 else [])]
    described = {}
    for file in own:
        flush(file)
        size, sha256 = _describe(file)
        described[file.name] = {"bytes": size, "sha256": sha256}
    return described


def _save_tensors(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def _complete(path: Path, temporary: Path, files: Mapping[str, Mapping]) -> None:
    with open(temporary / COMPLETE, "w", encoding="utf-8") as file:
        json.dump({"version": _VERSION, "files": dict(sorted(files.items()))}, file, indent=2)
    flush(temporary / COMPLETE)
    flush(temporary)
    discard(path)  # of a run that was here before, and was not gone on from
    os.replace(temporary, path)
    flush(path.parent)


def _all(value: Any, group: dist.ProcessGroup | None) -> list:
    if group is None:
        return [value]
    found: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def _together(path: Path, group: dist.ProcessGroup | None, work: Callable[[], object]) -> None:
    """Do this rank's part of the work, and fail on all ranks if it fails on one."""
    cause, reason = None, None
    try:
        work()
    except CheckpointException as error:  # what any of the ranks has raised, and no Exception
        cause, reason = error, str(next(iter(error.failures.values()))[0])
    except Exception as error:
        cause, reason = error, str(error) or type(error).__name__
    reasons = [each for each in _all(reason, group) if each is not None]
    if reasons:
        if not group or dist.get_rank(group) == 0:
            shutil.rmtree(path.with_name(f".{path.name}"), ignore_errors=True)
        before = checkpoints(path.parent.parent)
        last = f"the last good one is {before[0].path.name}" if before else "there is none yet"
        raise SaveFailed(f"{path.parent}: no checkpoint can be written there ({reasons[0]}); {last}") from cause


def read_rest(path: Path) -> dict:
    """Read what a checkpoint holds beside tensors; nothing in it is run.

    Raises:
        ConfigError: If it is none that we wrote.
    """
    try:
        return torch.load(path / REST, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: no checkpoint to go on from ({reason})") from error


def read_loader_state(path: Path) -> dict:
    """Read where in the data a checkpoint's run was.

    Raises:
        ConfigError: If it does not tell.
    """
    rest = read_rest(path)
    try:
        (state,) = rest["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        found = {name: state[name] for name in ("samples_seen", "rests_on")}
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no checkpoint to go on from: it does not tell where in the data it was") from error
    return found


def discard(path: Path) -> None:
    """Remove a checkpoint; killed meanwhile, it is none, and not half of one."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def keep_newest(run: Path, count: int) -> None:
    """Remove all but the newest checkpoints."""
    for checkpoint in checkpoints(run)[count:]:
        discard(checkpoint.path)


def drop_newer(run: Path, step: int) -> None:
    """Remove the checkpoints of later steps, which a run that goes on from `step` will come to again."""
    for checkpoint in checkpoints(run):
        if checkpoint.step > step:
            discard(checkpoint.path)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
