"""A split's shards, written in parallel into `SPLIT.part`, which becomes `SPLIT` when all of it is there.

Whoever reads `SPLIT` therefore never sees a part of it, and what was interrupted goes on where it stood.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
SKIPPED = "skipped.jsonl"
_SERIAL_BYTES = 2**28
"""Up to so many bytes are written in this process: starting others takes longer."""


def find_bad_records(plan: SplitLayout, num_workers: int | None) -> list[Skipped]:
    """Decode every image and write nothing; gives all that is bad."""
    found = list(plan.skipped)
    for skipped in _work("looking at images", [ShardJob(None, records) for records in plan.shards], plan, num_workers):
        found += skipped
    return found


def write_split(
    plan: SplitLayout, folder: Path, settings: dict, max_bad_fraction: float = 0.01, num_workers: int | None = None
) -> dict:
    """Write a split's shards, index and manifest.

    Args:
        plan: What goes where.
        folder: The split's; it must hold nothing else.
        settings: What the plan was made with; told where a folder holds another one.
        max_bad_fraction: Of all records; where more are bad, the folder does not appear.
        num_workers: Processes; None is one a core.

    Returns:
        Counts, as `plan.json` keeps them: `records`, `pairs`, `images`, `shards`, `bytes`, `skipped`, `seconds`.

    Raises:
        ConfigError: If too much is bad, the folder holds something else, or the disk is full.
    """
    started = time.perf_counter()
    part = folder.with_name(f"{folder.name}.part")
    described = {"sha256": plan.sha256, "settings": settings}
    try:
        with locked(folder.with_name(f".{folder.name}.lock"), f"{folder}: another process is making it: wait for it"):
            if folder.exists() and any(folder.iterdir()):
                return _found(folder, described)
            _begin(part, described, sum(plan.shard_bytes))
            if _done(part) is None:  # else it was interrupted within a moment of its end
                skipped = _write(part, plan, num_workers)
                refuse_too_many_bad(folder.name, skipped, plan.num_records, max_bad_fraction)
                _finish(part, described, skipped, plan, num_workers, started)
            return _publish(part, folder)
    except (OSError, WriteFailed) as error:
        reason = error.reason if isinstance(error, WriteFailed) else error.strerror or error
        raise ConfigError(
            f"{part}: cannot be written ({reason}): mend it, or give another out=; the same command goes on from there"
        ) from error


def _found(folder: Path, described: dict) -> dict:
    """Return the counts of a split that is made already, if it is the one that was asked for."""
    _hold_to(folder, described, "holds shards", "give another name= or out=, or delete that folder")
    done = _done(folder)
    manifest = Manifest.parse(str(folder), (folder / "manifest.json").read_bytes())
    sizes = {tar.name: tar.stat().st_size for tar in folder.glob("*.tar")}
    if done is None or sizes != dict(zip(manifest.names, manifest.bytes.tolist(), strict=True)):
        raise ConfigError(f"{folder}: its tars are not those of its manifest: delete the folder, it is made anew")
    return done | {"seconds": 0.0}


def _done(folder: Path) -> dict | None:
    return json.loads((folder / PLAN).read_text(encoding="utf-8")).get("done")


def _hold_to(folder: Path, described: dict, what: str, remedy: str) -> None:
    try:
        before = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        known, sha256 = before["settings"], before["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder}: {what} of something else (it has no {PLAN} of ours): {remedy}") from None
    if sha256 == described["sha256"]:
        return
    now = described["settings"]
    changed = [f"{key}={known.get(key)}, now {now[key]}" for key in now if known.get(key) != now[key]]
    raise ConfigError(f"{folder}: {what} made with {'; '.join(changed) or 'other raw files or records'}: {remedy}")


def _begin(part: Path, described: dict, total: int) -> None:
    part.mkdir(parents=True, exist_ok=True)
    for left in part.glob(".*"):
        left.unlink()
    if not any(part.iterdir()):
        write_whole(part / PLAN, json.dumps(described, indent=2) + "\n")
    _hold_to(part, described, "a beginning", "put that back, or delete this folder and begin anew")
    written = sum(tar.stat().st_size for tar in part.glob("*.tar"))
    free = shutil.disk_usage(part).free
    if total - written > free:
        raise ConfigError(
            f"{part}: {(total - written) / 1e9:.1f} GB are to be written, and {free / 1e9:.1f} GB are free: make room, "
            f"or give another out="
        )


def _write(part: Path, plan: SplitLayout, num_workers: int | None) -> list[Skipped]:
    """Write the shards; gives all that is left out, so that one message can count it."""
    jobs = [ShardJob(part / f"{number:05d}.tar", records) for number, records in enumerate(plan.shards)]
    skipped = list(plan.skipped)
    with closing(_work(f"writing {part.stem}", jobs, plan, num_workers)) as work:  # its processes end before a message
        for found in work:
            skipped += found
    return skipped


def _finish(
    part: Path, described: dict, skipped: list[Skipped], plan: SplitLayout, num_workers: int | None, started: float
) -> None:
    """Write the index, the manifest and, last, the counts."""
    tars = []
    for number in range(len(plan.shards)):
        tar = part / f"{number:05d}.tar"
        if len(json.loads(report_of(tar).read_text(encoding="utf-8"))) < len(plan.shards[number]):
            tars.append(tar)
    lines = (json.dumps(dict(s._asdict()), ensure_ascii=False) + "\n" for s in skipped)
    write_whole(part / SKIPPED, "".join(lines))
    homes = [tar.with_name(f"{tar.name}.idx") for tar in tars]
    manifest = Manifest.of(str(part), [tar.name for tar in tars], index_tars(tars, homes, num_workers))
    expected = plan.num_records - len(skipped)
    if manifest.num_records.sum() != expected or manifest.faults:
        raise RuntimeError(f"{part}: {expected} records were written, and found are {manifest.num_records.sum()}")
    done = {
        "records": expected,
        "pairs": int(manifest.num_pairs.sum()),
        "images": sum(ShardIndex.load(home).num_images for home in homes),
        "shards": len(tars),
        "bytes": int(manifest.bytes.sum()),
        "skipped": dict(Counter(s.reason for s in skipped).most_common()),
        "seconds": round(time.perf_counter() - started, 1),
    }
    manifest.save()
    write_whole(part / PLAN, json.dumps(described | {"done": done}, indent=2) + "\n")


def _publish(part: Path, folder: Path) -> dict:
    """Let a split that is done appear under its name; nothing here minds having been begun before."""
    done = _done(part)
    names = Manifest.parse(str(part), (part / "manifest.json").read_bytes()).names
    for path in [*part.glob("*.report.json"), *part.glob("*.tar")]:
        if path.name not in names:  # a tar whose records were all bad
            path.unlink()
    flush(part)
    os.rename(part, folder)
    flush(folder.parent)
    return done


def _work(title: str, jobs: list[ShardJob], plan: SplitLayout, num_workers: int | None) -> Iterator[list[Skipped]]:
    total = sum(plan.shard_bytes)
    num_workers = min(num_workers or os.cpu_count() or 1, len(jobs)) if total > _SERIAL_BYTES else 1
    columns = TextColumn(title), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    with bars(*columns) as progress, _pool(num_workers) as run:
        task = progress.add_task("", total=total)
        for size, skipped in zip(plan.shard_bytes, run(make_shard, jobs), strict=True):
            progress.advance(task, size)
            yield skipped


@contextmanager
def _pool(num_workers: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    if num_workers <= 1:
        yield map
        return
    pool = executor(num_workers)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise ConfigError(
            f"a process ended (out of memory?): the same command goes on, with workers={max(1, num_workers // 2)}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
