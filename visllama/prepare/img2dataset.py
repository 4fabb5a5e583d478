"""The `img2dataset` command: how it is called, what it gets to know, and when its shards count as whole.

It lives in its own virtual environment, since its pins fight ours. It follows redirects, resolves names and reads
bodies without a bound, which no filter of URLs can hold back: run it where your own network is out of reach.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from visllama.errors import ConfigError
from visllama.files import locked

if TYPE_CHECKING:
    from visllama.prepare.request import Download

_MARK = "VISLLAMA_DOWNLOAD"
_SECRETS = re.compile(r"(?i)key|token|secret|pass|credential|^(aws|azure|gcp|google|hf|wandb|ssh)_|^python(path|home)$")
_HOW = (
    "give img2dataset its own environment (Python 3.10 to 3.12): python3.11 -m venv i2d && i2d/bin/pip install "
    "img2dataset==1.47.0; then command=i2d/bin/img2dataset, or export VISLLAMA_IMG2DATASET"
)


def find_command(command: str) -> str:
    """Return the absolute path of the command.

    Raises:
        ConfigError: If it is absent, with how to install it.
    """
    found = shutil.which(os.path.expanduser(command))
    if found is None:
        raise ConfigError(f"command={command}: no such command; {_HOW}")
    return os.path.abspath(found)


def command_line(spec: Download, list_file: str | Path, out: str | Path) -> list[str]:
    """Return the command that downloads a filtered list; it honours the sites' noai headers, which is its default."""
    options = {
        "url_list": list_file,
        "input_format": "jsonl",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": out,
        "processes_count": spec.processes,
        "thread_count": spec.threads,
        "image_size": spec.image_size_px,
        "resize_mode": spec.resize_mode,
        "resize_only_if_bigger": spec.resize_only_if_bigger,
        "skip_reencode": spec.skip_reencode,
        "encode_quality": spec.encode_quality,
        "min_image_size": spec.min_image_size_px,
        "max_aspect_ratio": spec.max_aspect_ratio,
        "number_sample_per_shard": spec.samples_per_shard,
        "save_additional_columns": json.dumps([*spec.score_columns]) if spec.score_columns else None,
        "extract_exif": False,  # nobody reads it, and it may say where a photo was taken
        "timeout": spec.timeout_s,
        "retries": spec.retries,
        "max_shard_retry": spec.max_shard_retries,
        "incremental_mode": "incremental",
        "distributor": spec.distributor,
        "enable_wandb": False,
    }
    return [spec.command, *(str(w) for k, v in options.items() if v is not None for w in (f"--{k}", v))]


def run_img2dataset(argv: list[str], folder: Path, num_shards: int, num_urls: int) -> dict[int, dict]:
    """Run the command over what is missing in `folder/shards`, its output in `folder/log.txt`.

    Returns:
        The statistics of each shard.

    Raises:
        ConfigError: If it does not start, fails, or leaves shards or URLs out.
    """
    shards, log = folder / "shards", folder / "log.txt"
    shards.mkdir(exist_ok=True)
    _complete(shards)
    code = _watch(argv, folder, num_shards)
    stats = _complete(shards)
    if code or len(stats) != num_shards or sum(stat["count"] for stat in stats.values()) != num_urls:
        raise ConfigError(
            f"img2dataset ended with {code}; {len(stats)} of {num_shards} shards are complete. The same command goes "
            f"on from there. The end of {log}:\n{tail(log)}"
        )
    return stats


def _watch(argv: list[str], folder: Path, num_shards: int) -> int:
    """Run the command to its end with a bar over its shards; none of its processes stays behind."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "env": environment(folder)}
    with (folder / "log.txt").open("ab") as log, Progress(*columns, transient=True) as bar:
        task = bar.add_task("shards", total=num_shards)
        try:
            process = subprocess.Popen(argv, stdout=log, start_new_session=True, **options)
        except OSError as error:  # an environment that was moved
            raise ConfigError(f"command={argv[0]} does not start: {error}; {_HOW}") from None
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(0.5)
                bar.update(task, completed=sum(1 for _ in (folder / "shards").glob("*_stats.json")))
        finally:  # not by Ctrl-C's signal: its handler exits with 0 and leaves its workers writing
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _complete(shards: Path) -> dict[int, dict]:
    """Return the statistics of finished shards; a half-written one loses its statistics, so that it is done again."""
    stats = {}
    for path in sorted(shards.glob("*_stats.json")):
        number = path.name.removesuffix("_stats.json")
        try:
            with (shards / f"{number}.tar").open("rb") as tar:
                tar.seek(-1024, os.SEEK_END)
                whole = tar.read() == bytes(1024)  # an archive ends with two empty blocks
            stat = json.loads(path.read_text()) if whole else None
        except (OSError, ValueError):
            stat = None
        if stat is None:
            path.unlink()
        else:
            stats[int(number)] = stat
    return stats


def environment(folder: Path) -> dict[str, str]:
    """Return our environment without secrets and without our Python's paths, marked with the folder."""
    kept = {name: value for name, value in os.environ.items() if not _SECRETS.search(name)}
    limits = {"OPENCV_IO_MAX_IMAGE_PIXELS": str(50_000_000)}  # a few kilobytes may unpack to gigabytes
    return kept | limits | {"NO_ALBUMENTATIONS_UPDATE": "1", _MARK: str(folder)}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder, and end what a killed run left at work in it: its workers would go on writing their shards.

    Raises:
        ConfigError: If another process holds the lock.
    """
    with locked(folder / "lock", f"{folder}: another process is at it"):
        _end_orphans(folder)
        yield


def _end_orphans(folder: Path) -> None:
    mark = f"{_MARK}={folder}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
