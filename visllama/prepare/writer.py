"""Write the shards of a split in parallel, into the folder `SPLIT.part`, which becomes `SPLIT` when all of it is there.

Whoever reads `SPLIT` therefore never sees a part of it, and what was interrupted goes on where it stood.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from visllama.console import bars
from visllama.data.shards.index import ShardIndex
from visllama.data.shards.manifest import Manifest, index_tars
from visllama.errors import ConfigError
from visllama.files import WriteFailed, flush, locked, write_whole
from visllama.machine.workers import executor
from visllama.prepare.layout import SplitLayout, refuse_too_many_bad
from visllama.prepare.raw import Skipped
from visllama.prepare.shard import ShardJob, make_shard, report_of

PLAN = "plan.json"
"""The file in a split's folder that holds the hash and the settings it was begun with and, at last, its counts."""
SKIPPED = "skipped.jsonl"
"""The file in a split's folder that holds what was left out, a JSON object a line."""
_SERIAL_BYTES = 2**28
"""Up to so many bytes are written in this process: starting others would take longer."""


def find_bad_records(plan: SplitLayout, num_workers: int | None) -> list[Skipped]:
    """Decode every image of a split, write nothing, and return all that would be left out.

    Args:
        plan: The records of the split.
        num_workers: The number of processes; None starts one for each core.

    Returns:
        A new list: first what the plan has left out already, then the records with images that cannot be read or
        decoded, in the order of the plan.

    Raises:
        ConfigError: If an image file has changed its size since the plan was made, or a process has ended.
    """
    jobs = [ShardJob(None, records) for records in plan.shards]
    all_skipped = list(plan.skipped)
    for skipped in _work("looking at images", jobs, plan, num_workers):
        all_skipped += skipped
    return all_skipped


def write_split(
    plan: SplitLayout, folder: Path, settings: dict, max_bad_fraction: float = 0.01, num_workers: int | None = None
) -> dict:
    """Write the shards of a split with their indexes and a manifest, or go on where an earlier call was interrupted.

    Records whose images cannot be read or decoded are left out. A split that is there already, written by the same
    plan, is left as it is.

    Args:
        plan: The records of each shard.
        folder: The folder of the split, which must not hold anything else. Until all is written, the files lie beside
            it, in a folder with ".part" at the end of its name.
        settings: The settings that the plan was made with, as plain values. They are kept in `plan.json`, and an error
            message about a folder with other settings names those that differ.
        max_bad_fraction: The largest share of the records, from 0 to 1, that may be left out; with more, the folder
            does not appear.
        num_workers: The number of processes; None starts one for each core.

    Returns:
        The counts, as `plan.json` keeps them: `records`, `pairs` (captions, questions and conversations), `images`,
        `shards`, `bytes`, `skipped` (the number left out by reason) and `seconds` (0.0 if the split was there already).

    Raises:
        ConfigError: If more records are left out than allowed, the folder or the ".part" folder holds other files or
            another plan's, another process writes the split, an image file changes meanwhile, a worker process is
            killed, or the disk is full or cannot be written.
    """
    started = time.perf_counter()
    part = folder.with_name(f"{folder.name}.part")
    lock = folder.with_name(f".{folder.name}.lock")
    description = {"sha256": plan.sha256, "settings": settings}

    try:
        with locked(lock, f"{folder}: another process is making it: wait for it"):
            if folder.exists() and any(folder.iterdir()):
                return _counts_of_existing(folder, description)

            _begin(part, description, sum(plan.shard_bytes))
            # A part that is done was interrupted just before it took its name.
            if _done(part) is None:
                skipped = _write(part, plan, num_workers)
                refuse_too_many_bad(folder.name, skipped, plan.num_records, max_bad_fraction)
                _finish(part, description, skipped, plan, num_workers, started)
            return _publish(part, folder)
    except WriteFailed as error:
        raise _unwritable(part, error.reason) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise _unwritable(part, reason) from error


def _unwritable(part: Path, reason: str) -> ConfigError:
    """Return, for the caller to raise, the error for a folder that cannot be written."""
    return ConfigError(
        f"{part}: cannot be written ({reason}): mend it, or give another out=; the same command goes on from there"
    )


def _counts_of_existing(folder: Path, description: dict) -> dict:
    """Return the counts of a split that is written already.

    Raises:
        ConfigError: If it was made by another plan, or its tars are not as its manifest says.
    """
    _hold_to(folder, description, "holds shards", "give another name= or out=, or delete that folder")

    # The sizes are compared, and not the bytes: shards may be huge.
    done = _done(folder)
    manifest = _read_manifest(folder)
    manifest_sizes = manifest.bytes.tolist()
    expected_sizes = dict(zip(manifest.names, manifest_sizes, strict=True))
    sizes = {tar.name: tar.stat().st_size for tar in folder.glob("*.tar")}
    if done is None or sizes != expected_sizes:
        raise ConfigError(f"{folder}: its tars are not those of its manifest: delete the folder, it is made anew")
    return done | {"seconds": 0.0}


def _done(folder: Path) -> dict | None:
    """Return the counts of a split whose shards are all written; None where some are not."""
    plan = _read_plan(folder)
    return plan.get("done")


def _read_plan(folder: Path) -> dict:
    """Return the content of a folder's `plan.json`."""
    text = (folder / PLAN).read_text(encoding="utf-8")
    return json.loads(text)


def _write_plan(folder: Path, content: dict) -> None:
    """Write a folder's `plan.json`, whole or not at all."""
    text = json.dumps(content, indent=2)
    write_whole(folder / PLAN, text + "\n")


def _read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder."""
    content = (folder / "manifest.json").read_bytes()
    return Manifest.parse(str(folder), content)


def _hold_to(folder: Path, description: dict, what: str, remedy: str) -> None:
    """Check that a folder was begun with this plan.

    Args:
        folder: The folder, with its `plan.json`.
        description: The hash and the settings of the plan.
        what: What the folder holds, for the error message.
        remedy: What the user can do, for the error message.

    Raises:
        ConfigError: If it was begun with another plan, or has no `plan.json` of this kind.
    """
    try:
        plan = _read_plan(folder)
        known_settings = plan["settings"]
        sha256 = plan["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder}: {what} of something else (it has no {PLAN} of ours): {remedy}") from None

    if sha256 == description["sha256"]:
        return

    changes = []
    for key, value in description["settings"].items():
        known_value = known_settings.get(key)
        if known_value != value:
            changes.append(f"{key}={known_value}, now {value}")
    difference = "; ".join(changes) or "other raw files or records"
    raise ConfigError(f"{folder}: {what} made with {difference}: {remedy}")


def _begin(part: Path, description: dict, total: int) -> None:
    """Make the ".part" folder of a split, or check that the one that is there can be gone on with.

    Raises:
        ConfigError: If it was begun with another plan, or the disk has no room for `total` bytes.
    """
    part.mkdir(parents=True, exist_ok=True)
    # Files that were half-written when a run was killed have hidden names.
    for leftover in part.glob(".*"):
        leftover.unlink()

    # The plan is the first file of a new folder: later calls are held to it.
    if not any(part.iterdir()):
        _write_plan(part, description)
    _hold_to(part, description, "a beginning", "put that back, or delete this folder and begin anew")

    written = sum(tar.stat().st_size for tar in part.glob("*.tar"))
    needed = total - written
    free = shutil.disk_usage(part).free
    if needed > free:
        needed_gb = needed / 1e9
        free_gb = free / 1e9
        raise ConfigError(
            f"{part}: {needed_gb:.1f} GB are to be written, and {free_gb:.1f} GB are free: make room, "
            f"or give another out="
        )


def _write(part: Path, plan: SplitLayout, num_workers: int | None) -> list[Skipped]:
    """Write the shards, and return all that is left out, beginning with what the plan has left out already."""
    jobs = []
    for number, records in enumerate(plan.shards):
        tar = _shard_path(part, number)
        jobs.append(ShardJob(tar, records))

    all_skipped = list(plan.skipped)
    # After an error its processes have to end before the message is printed.
    with closing(_work(f"writing {part.stem}", jobs, plan, num_workers)) as results:
        for skipped in results:
            all_skipped += skipped
    return all_skipped


def _shard_path(part: Path, number: int) -> Path:
    """Return the path of a shard, given by its number, from 0."""
    return part / f"{number:05d}.tar"


def _finish(
    part: Path,
    description: dict,
    skipped: list[Skipped],
    plan: SplitLayout,
    num_workers: int | None,
    started: float,
) -> None:
    """Write what was left out, the indexes, the manifest and, last, the counts.

    Args:
        part: The folder that holds the shards.
        description: The content of `plan.json` so far.
        skipped: All that is left out.
        plan: The records of each shard.
        num_workers: The number of processes; None starts one for each core.
        started: The value of `time.perf_counter()` when the work began.

    Raises:
        RuntimeError: If other records can be read back than were written.
    """
    lines = [json.dumps(record._asdict(), ensure_ascii=False) + "\n" for record in skipped]
    write_whole(part / SKIPPED, "".join(lines))

    tars = _tars_with_records(part, plan)
    names = [tar.name for tar in tars]
    homes = [part / f"{name}.idx" for name in names]
    rows = index_tars(tars, homes, num_workers)
    manifest = Manifest.of(str(part), names, rows)

    # The index is made from the tars as they are on disk: it shows what training will find.
    expected = plan.num_records - len(skipped)
    indexed = manifest.num_records.sum()
    if indexed != expected or manifest.faults:
        raise RuntimeError(f"{part}: {expected} records were written, but {indexed} can be read back")

    # The folder is taken as done from the moment at which these counts are in its plan.
    reasons = Counter(record.reason for record in skipped)
    num_images = sum(ShardIndex.load(home).num_images for home in homes)
    seconds = time.perf_counter() - started
    done = {
        "records": expected,
        "pairs": int(manifest.num_pairs.sum()),
        "images": num_images,
        "shards": len(tars),
        "bytes": int(manifest.bytes.sum()),
        "skipped": dict(reasons.most_common()),
        "seconds": round(seconds, 1),
    }
    manifest.save()
    _write_plan(part, description | {"done": done})


def _tars_with_records(part: Path, plan: SplitLayout) -> list[Path]:
    """Return the tars that hold a record: where all records of a tar were bad, it is empty, and is no shard."""
    tars = []
    for number, records in enumerate(plan.shards):
        tar = _shard_path(part, number)
        report_text = report_of(tar).read_text(encoding="utf-8")
        left_out = json.loads(report_text)
        if len(left_out) < len(records):
            tars.append(tar)
    return tars


def _publish(part: Path, folder: Path) -> dict:
    """Remove what is no shard from a finished ".part" folder, give it its name, and return its counts.

    After a kill it may be called again.
    """
    done = _done(part)
    assert done is not None
    manifest = _read_manifest(part)
    # Reports, and the tars whose records were all bad.
    paths = [*part.glob("*.report.json"), *part.glob("*.tar")]
    for path in paths:
        if path.name not in manifest.names:
            path.unlink()

    # The folder's entries have to be on disk before its name is.
    flush(part)
    os.rename(part, folder)
    flush(folder.parent)
    return done


def _work(
    title: str, jobs: list[ShardJob], plan: SplitLayout, num_workers: int | None
) -> Generator[list[Skipped], None, None]:
    """Do the jobs in parallel, with a progress bar over their bytes, and yield what each leaves out, in their order."""
    total = sum(plan.shard_bytes)
    num_workers = num_workers or os.cpu_count() or 1
    if total <= _SERIAL_BYTES:
        num_workers = 1
    num_workers = min(num_workers, len(jobs))

    columns = (
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with bars(*columns) as progress, _pool(num_workers) as run:
        task = progress.add_task("", total=total)
        results = run(make_shard, jobs)
        for size, skipped in zip(plan.shard_bytes, results, strict=True):
            progress.advance(task, size)
            yield skipped


@contextmanager
def _pool(num_workers: int) -> Generator[Callable[[Callable, Iterable], Iterable], None, None]:
    """Yield a `map` that runs in so many processes, or Python's own where a single process is enough.

    Raises:
        ConfigError: If a process ends before its work is done.
    """
    if num_workers <= 1:
        yield map
        return
    pool = executor(num_workers)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        fewer = max(1, num_workers // 2)
        raise ConfigError(
            f"a process ended (out of memory?): the same command goes on, with workers={fewer}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
