"""Download lists of URLs (CC-3M's TSV, COYO-700M's parquet files) as webdataset shards, in one or more parts.

A part is a slice of the list. Each part has a folder, `out/_download/part-00003-of-00064`, which holds `spec.json` (the
settings it was begun with), `list` (its filtered rows), `shards`, `log.txt`, and at last `done.json`. `merge` moves the
shards of all parts into `out`.
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
_DONE = "done.json"
"""The file in a part's folder that holds its counts; it is written when all of the part is downloaded."""
_RUNTIME = {
    "out",
    "part",
    "processes",
    "threads",
    "timeout_s",
    "retries",
    "max_shard_retries",
    "distributor",
    "command",
    "min_success",
}
"""Settings that may change between a run and its continuation: the shards do not follow from them."""


def download(spec: Download) -> dict:
    """Download the part of a list that `spec.part` names, and return its counts; without a part, all of it, and merge.

    A part that was interrupted goes on where it stood, and one that is done is not run again. The shards of a part stay
    in its own folder until `merge` moves them; those of a whole list are moved to `spec.out` at once.

    Args:
        spec: The settings of the download.

    Returns:
        `rows` (of the list), `refused_urls` (rows that were not tried, by reason), `downloaded` (images), `failed`
        (URLs that gave no image, by reason), `seconds` and `shards`.

    Raises:
        ConfigError: If the command or the list is not there, the part was begun with other settings, another process
            works on it, img2dataset fails or leaves shards out, or fewer than `min_success` of the URLs gave an image.
    """
    index, num_parts = read_part(spec.part)
    folder = _folder(spec, index, num_parts)
    with alone(folder):
        _hold_to(spec, folder)
        if not _is_done(folder):
            _download_part(spec, folder)
        done = _read_json(folder / _DONE)

    if spec.part:
        return _summary([done])
    # Everything is one part, which nobody else waits for.
    only_part = replace(spec, part="1/1")
    return merge(only_part)


def _download_part(spec: Download, folder: Path) -> None:
    """Filter the rows of a part, download them, check how many succeeded, and write `done.json`.

    What an earlier call has filtered or downloaded is kept.
    """
    started = time.monotonic()
    command = find_command(spec.command)
    spec = replace(spec, command=command)
    counts = write_list(spec, folder)

    tried = counts["kept"]
    num_shards = -(-tried // spec.samples_per_shard)
    argv = command_line(spec, folder / "list", folder / "shards")
    stats = run_img2dataset(argv, folder, num_shards, tried)

    # img2dataset counts the successes among its reasons.
    failed = Counter()
    for stat in stats.values():
        failed.update(stat["status_dict"])
    # A URL that no statistics mention has failed too.
    failed["lost without a reason"] += tried - failed.total()
    downloaded = failed.pop("success", 0)
    _require_success(spec, folder, downloaded, tried, failed)

    tars = []
    for shard, stat in sorted(stats.items()):
        # A shard whose URLs have all failed is an empty tar.
        if stat["successes"]:
            tars.append(f"{shard:05d}.tar")

    seconds = time.monotonic() - started
    done = {
        "rows": counts["rows"],
        "refused_urls": counts["refused_urls"],
        "downloaded": downloaded,
        "failed": _top(failed),
        "seconds": round(seconds, 1),
        "tars": tars,
    }
    _write_json(folder / _DONE, done)

    # It is as large as the user's own list; img2dataset's own parquet files say what became of each URL.
    shutil.rmtree(folder / "list")


def _is_done(folder: Path) -> bool:
    """Return whether a part is downloaded to its end."""
    done = folder / _DONE
    return done.exists()


def _require_success(spec: Download, folder: Path, downloaded: int, tried: int, failed: Counter) -> None:
    """Raise a `ConfigError` if fewer than `min_success` of the URLs gave an image."""
    if downloaded >= spec.min_success * tried:
        return
    # The plus sign drops the reasons that never occurred.
    top_reasons = (+failed).most_common(5)
    counts = [f"{reason}: {number}" for reason, number in top_reasons]
    count_list = ", ".join(counts)
    raise ConfigError(
        f"only {downloaded} of {tried} URLs gave an image ({count_list}): below "
        f"min_success={spec.min_success}. Lower it to take them as they are, or remove {folder} to download again"
    )


def merge(spec: Download) -> dict:
    """Move the shards of all parts into `spec.out`, numbered in the order of the parts, and return their counts.

    A second call moves nothing more, and returns the same; one that was interrupted goes on.

    Args:
        spec: The settings of the download. The number of parts is taken from `part`, or from the folders of the parts
            where it is None.

    Returns:
        The counts that `download` returns, each the sum over all parts.

    Raises:
        ConfigError: If a part is not done, was begun with other settings, or has lost shards; if the number of parts is
            not known; or if `spec.out` holds tars of something else.
    """
    # Nothing is moved before all parts are known to be done.
    work = _work(spec)
    num_parts = _num_parts(spec, work)
    folders = [_folder(spec, index, num_parts) for index in range(1, num_parts + 1)]

    unfinished_parts = [folder.name for folder in folders if not _is_done(folder)]
    if unfinished_parts:
        num_unfinished = len(unfinished_parts)
        first_parts = ", ".join(unfinished_parts[:8])
        raise ConfigError(f"{work}: {num_unfinished} of {num_parts} parts are not done: {first_parts}")

    with alone(work):
        for folder in folders:
            _hold_to(spec, folder)

        all_counts = [_read_json(folder / _DONE) for folder in folders]
        tars = []
        for folder, part in zip(folders, all_counts, strict=True):
            shards = folder / "shards"
            tars += [shards / tar for tar in part["tars"]]
        _move(tars, work.parent)

        summary = _summary(all_counts)
        _write_json(work / "merged.json", summary)
    return summary


def _num_parts(spec: Download, work: Path) -> int:
    """Return the number of parts: that of `part=`, or the one that the folders of the parts name."""
    if spec.part:
        _, num_parts = read_part(spec.part)
        return num_parts

    # A folder's name ends with the number of parts, in five digits.
    folders = work.glob("part-?????-of-?????")
    numbers = {int(folder.name[-5:]) for folder in folders}
    if len(numbers) != 1:
        known_numbers = sorted(numbers) or "nothing"
        raise ConfigError(f"{work}: parts of {known_numbers}; name the number of parts, as part=1/64")
    return numbers.pop()


def _move(sources: list[Path], out: Path) -> None:
    """Move tars into a folder, named by their numbers in the list; those that an earlier call has moved stay.

    Raises:
        ConfigError: If the folder holds other tars, or a tar is neither at its old place nor at its new one.
    """
    last_number = str(len(sources) - 1)
    width = max(5, len(last_number))
    moves = {}
    for number, source in enumerate(sources):
        target = out / f"{number:0{width}d}.tar"
        moves[target] = source

    _check_moves(moves, out)

    for target, source in moves.items():
        if source.exists():
            os.replace(source, target)


def _check_moves(moves: dict[Path, Path], out: Path) -> None:
    """Check that each source can be moved to its target, or has been.

    Args:
        moves: The sources by their targets, which lie in `out`.
        out: The folder that the tars are moved to.

    Raises:
        ConfigError: If the folder holds other tars, or a tar is neither at its old place nor at its new one.
    """
    foreign_tars = []
    for tar in out.glob("*.tar"):
        # A tar that is there belongs to us if it is a target whose source has gone: an earlier call has moved it.
        source = moves.get(tar)
        if source is None or source.exists():
            foreign_tars.append(tar)
    if foreign_tars:
        first = min(foreign_tars)
        raise ConfigError(f"{out} holds tars of something else, such as {first.name}: give another out=")

    lost_tars = []
    for target, source in moves.items():
        if not source.exists() and not target.exists():
            lost_tars.append(source)
    if lost_tars:
        raise ConfigError(f"{len(lost_tars)} finished shards are gone, such as {lost_tars[0]}")


def _hold_to(spec: Download, folder: Path) -> None:
    """Check that a folder was begun with these settings, so that shards of two kinds cannot mix; a new one is begun.

    Raises:
        ConfigError: If it was begun with other settings.
    """
    settings = _kept_settings(spec)
    path = folder / "spec.json"
    if not path.exists():
        _write_json(path, settings)
    settings_before = _read_json(path)

    changes = []
    for key, value in settings.items():
        value_before = settings_before.get(key)
        if value_before == value:
            continue
        if key == "list":
            changes.append("another list")
        else:
            changes.append(f"{key}={value_before}, now {value}")

    if changes:
        change_list = ", ".join(changes)
        raise ConfigError(f"{folder} was begun with {change_list}; put it back, or give another out=")


def _kept_settings(spec: Download) -> dict:
    """Return the settings that the shards follow from, as they are read back from JSON."""
    settings = {key: value for key, value in asdict(spec).items() if key not in _RUNTIME}
    # The list may have been moved since, so that its files' names and sizes stand for it.
    settings["list"] = {file.name: file.stat().st_size for file in list_files(spec)}
    # JSON has no tuples: what is compared has to have been through it once.
    text = json.dumps(settings)
    return json.loads(text)


def _work(spec: Download) -> Path:
    """Return the folder that holds the folders of the parts."""
    out = Path(spec.out).expanduser()
    return out.resolve() / "_download"


def _folder(spec: Download, index: int, num_parts: int) -> Path:
    """Return the folder of a part, which is counted from 1."""
    return _work(spec) / f"part-{index:05d}-of-{num_parts:05d}"


def _summary(all_counts: list[dict]) -> dict:
    """Return the sum of the counts of some parts, which are the contents of their `done.json`."""
    rows = 0
    downloaded = 0
    shards = 0
    refused = Counter()
    failed = Counter()
    for part in all_counts:
        rows += part["rows"]
        downloaded += part["downloaded"]
        shards += len(part["tars"])
        refused.update(part["refused_urls"])
        failed.update(part["failed"])

    seconds = sum(part["seconds"] for part in all_counts)
    return {
        "rows": rows,
        "refused_urls": dict(refused.most_common()),
        "downloaded": downloaded,
        "failed": _top(failed),
        "seconds": round(seconds, 1),
        "shards": shards,
    }


def _top(reasons: Counter) -> dict[str, int]:
    """Return the most frequent reasons, and the sum of the others: there may be a reason for each host."""
    frequent_reasons = reasons.most_common(_MOST_REASONS)
    top = Counter(dict(frequent_reasons))
    top["other reasons"] += reasons.total() - top.total()
    # The plus sign drops the reasons that never occurred.
    return dict(+top)


def _read_json(path: Path) -> dict:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def _write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(content, indent=2)
    write_whole(path, text + "\n")
