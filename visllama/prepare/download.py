"""URL lists (CC-3M's TSV, COYO-700M's parquet files) become webdataset shards: filter, download, judge, merge.

Each part has a folder, `out/_download/part-00003-of-00064`: `spec.json` (the settings it was begun with), `list` (its
filtered rows), `shards`, `log.txt`, and at last `done.json`. `merge` moves the shards of all parts into `out`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from visllama.errors import ConfigError
from visllama.files import write_whole
from visllama.prepare.img2dataset import alone, command_line, find_command, run_img2dataset
from visllama.prepare.request import Download
from visllama.prepare.url_list import list_files, read_part, write_list

_MOST_REASONS = 20


_RUNTIME = {"out", "part", "processes", "threads", "timeout_s", "retries", "max_shard_retries", "distributor"}
_RUNTIME |= {"command", "min_success"}  # what may change between a run and its continuation


def download(spec: Download) -> dict:
    """Download a part, or everything; a part that was cut short goes on, one that is done is not run again.

    Raises:
        ConfigError: If the command or the list is absent, the part was begun with other settings, the command failed
            or left shards out, or fewer than `min_success` of the URLs gave an image.
    """
    folder = _folder(spec, *read_part(spec.part))
    with alone(folder):
        _hold_to(spec, folder)
        if not (folder / "done.json").exists():
            _download_part(spec, folder)
        done = _read_json(folder / "done.json")
    return _summary([done]) if spec.part else merge(replace(spec, part="1/1"))


def _download_part(spec: Download, folder: Path) -> None:
    """Filter, download, and judge the result; what is there already is kept."""
    started = time.monotonic()
    spec = replace(spec, command=find_command(spec.command))
    counts = write_list(spec, folder)
    tried = counts["kept"]
    argv = command_line(spec, folder / "list", folder / "shards")
    stats = run_img2dataset(argv, folder, -(-tried // spec.samples_per_shard), tried)
    failed = Counter()
    for stat in stats.values():
        failed.update(stat["status_dict"])
    failed["lost without a reason"] += tried - failed.total()
    downloaded = failed.pop("success", 0)
    if downloaded < spec.min_success * tried:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in (+failed).most_common(5))
        raise ConfigError(
            f"only {downloaded} of {tried} URLs gave an image ({reasons}): below min_success={spec.min_success}. Lower "
            f"it to take them as they are, or remove {folder} to download again"
        )
    done = {
        "rows": counts["rows"],
        "refused_urls": counts["refused_urls"],
        "downloaded": downloaded,
        "failed": _top(failed),
        "seconds": round(time.monotonic() - started, 1),
        "tars": [f"{shard:05d}.tar" for shard, stat in sorted(stats.items()) if stat["successes"]],
    }
    write_whole(folder / "done.json", json.dumps(done, indent=2) + "\n")
    shutil.rmtree(folder / "list")  # as large as the list itself; img2dataset's own parquet files say what became of it


def merge(spec: Download) -> dict:
    """Move the shards of all parts into `out`, numbered in the order of the parts; a second call changes nothing.

    Raises:
        ConfigError: If a part is not done or has other settings, or `out` holds tars of something else.
    """
    work = _work(spec)
    begun = {int(folder.name[-5:]) for folder in work.glob("part-?????-of-?????")}
    counts = {read_part(spec.part)[1]} if spec.part else begun
    if len(counts) != 1:
        raise ConfigError(f"{work}: parts of {sorted(counts) or 'nothing'}; name the number of parts, as part=1/64")
    [parts] = counts
    folders = [_folder(spec, index, parts) for index in range(1, parts + 1)]
    waiting = [folder.name for folder in folders if not (folder / "done.json").exists()]
    if waiting:
        raise ConfigError(f"{work}: {len(waiting)} of {parts} parts are not done: {', '.join(waiting[:8])}")
    with alone(work):
        for folder in folders:
            _hold_to(spec, folder)
        done = [_read_json(folder / "done.json") for folder in folders]
        tars = [folder / "shards" / tar for folder, part in zip(folders, done, strict=True) for tar in part["tars"]]
        _move(tars, work.parent)
        summary = _summary(done)
        write_whole(work / "merged.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _move(sources: list[Path], out: Path) -> None:
    """Move tars, numbering them; those of a move that was cut short are there already."""
    width = max(5, len(str(len(sources) - 1)))
    moves = {out / f"{number:0{width}d}.tar": source for number, source in enumerate(sources)}
    foreign = {tar for tar in out.glob("*.tar") if tar not in moves or moves[tar].exists()}
    if foreign:
        raise ConfigError(f"{out} holds tars of something else, such as {min(foreign).name}; choose another")
    lost = [source for target, source in moves.items() if not source.exists() and not target.exists()]
    if lost:
        raise ConfigError(f"{len(lost)} finished shards are gone, such as {lost[0]}")
    for target, source in moves.items():
        if source.exists():
            os.replace(source, target)


def _hold_to(spec: Download, folder: Path) -> None:
    """Hold the settings to those that the folder was begun with: shards of two kinds would mix unseen."""
    now = {key: value for key, value in asdict(spec).items() if key not in _RUNTIME}
    now = json.loads(json.dumps(now | {"list": {file.name: file.stat().st_size for file in list_files(spec)}}))
    path = folder / "spec.json"
    if not path.exists():
        write_whole(path, json.dumps(now, indent=2) + "\n")
    begun = _read_json(path)
    other = [key for key in now if begun.get(key) != now[key]]
    if other:
        changes = ["another list" if key == "list" else f"{key}={begun.get(key)}, now {now[key]}" for key in other]
        raise ConfigError(f"{folder} was begun with {', '.join(changes)}; put it back, or choose another out")


def _work(spec: Download) -> Path:
    return Path(spec.out).expanduser().resolve() / "_download"


def _folder(spec: Download, index: int, parts: int) -> Path:
    return _work(spec) / f"part-{index:05d}-of-{parts:05d}"


def _summary(done: list[dict]) -> dict:
    """Add up parts."""
    refused, failed = Counter(), Counter()
    for part in done:
        refused.update(part["refused_urls"])
        failed.update(part["failed"])
    return {
        "rows": sum(part["rows"] for part in done),
        "refused_urls": dict(refused.most_common()),
        "downloaded": sum(part["downloaded"] for part in done),
        "failed": _top(failed),
        "seconds": round(sum(part["seconds"] for part in done), 1),
        "shards": sum(len(part["tars"]) for part in done),
    }


def _top(reasons: Counter) -> dict[str, int]:
    """Keep the most frequent reasons: there may be one for each host."""
    top = Counter(dict(reasons.most_common(_MOST_REASONS)))
    top["other reasons"] += reasons.total() - top.total()
    return dict(+top)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text())
