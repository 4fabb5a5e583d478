"""Run the `img2dataset` command: its options, its environment variables, and when its shards count as whole.

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
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from visllama.errors import ConfigError
from visllama.files import locked

if TYPE_CHECKING:
    from visllama.prepare.request import Download

_MARK = "VISLLAMA_DOWNLOAD"
"""The environment variable that marks the processes of a download with its folder."""
_SECRETS = re.compile(r"(?i)key|token|secret|pass|credential|^(aws|azure|gcp|google|hf|wandb|ssh)_|^python(path|home)$")
_HOW = (
    "give img2dataset its own environment (Python 3.10 to 3.12): python3.11 -m venv i2d && i2d/bin/pip install "
    "img2dataset==1.47.0; then command=i2d/bin/img2dataset, or export VISLLAMA_IMG2DATASET"
)


def find_command(command: str) -> str:
    """Return the absolute path of the `img2dataset` command.

    Args:
        command: A name that is looked for in PATH, or a path; `~` is the home folder.

    Raises:
        ConfigError: If there is no such command; the message says how to install it.
    """
    path = shutil.which(os.path.expanduser(command))
    if path is None:
        raise ConfigError(f"command={command}: no such command; {_HOW}")
    return os.path.abspath(path)


def command_line(spec: Download, list_file: str | Path, out: str | Path) -> list[str]:
    """Return the arguments, the program first, with which img2dataset downloads a list; nothing is run.

    img2dataset leaves out images whose site forbids use for training by a "noai" header, which is its default.

    Args:
        spec: The settings of the download; `spec.command` is the program.
        list_file: The list as JSON lines, or a folder of such files, as `write_list` writes it.
        out: The folder that the shards are written to.
    """
    additional_columns = json.dumps(spec.score_columns) if spec.score_columns else None
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
        "save_additional_columns": additional_columns,
        # Nobody reads EXIF data, and they may say where a photo was taken.
        "extract_exif": False,
        "timeout": spec.timeout_s,
        "retries": spec.retries,
        "max_shard_retry": spec.max_shard_retries,
        "incremental_mode": "incremental",
        "distributor": spec.distributor,
        "enable_wandb": False,
    }
    # An option without a value is left to img2dataset's own default.
    argv = [spec.command]
    for name, value in options.items():
        if value is not None:
            argv += [f"--{name}", str(value)]
    return argv


def run_img2dataset(argv: list[str], folder: Path, num_shards: int, num_urls: int) -> dict[int, dict]:
    """Run img2dataset to its end, for the shards that are missing in `folder/shards`, with a progress bar.

    Its output is appended to `folder/log.txt`. Shards that were half written are made anew.

    Args:
        argv: The arguments, as `command_line` returns them with `folder/shards` as the folder of the shards.
        folder: The folder of the part of the list that is downloaded.
        num_shards: The number of shards that there have to be at the end.
        num_urls: The number of URLs that these shards have to account for.

    Returns:
        The statistics of each shard, by its number, as img2dataset writes them (`count`, `successes`, `status_dict`).

    Raises:
        ConfigError: If img2dataset does not start, fails, or leaves shards or URLs out.
    """
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)

    # img2dataset takes a shard with statistics as finished, so that half-written ones have to lose theirs first.
    _complete(shards)
    code = _watch(argv, folder, num_shards)
    stats = _complete(shards)

    counted_urls = sum(stat["count"] for stat in stats.values())
    if code or len(stats) != num_shards or counted_urls != num_urls:
        log = folder / "log.txt"
        raise ConfigError(
            f"img2dataset ended with {code}; {len(stats)} of {num_shards} shards are complete. The same command goes "
            f"on from there. The end of {log}:\n{tail(log)}"
        )
    return stats


def _watch(argv: list[str], folder: Path, num_shards: int) -> int:
    """Run the command to its end, with a progress bar over its shards, and return its exit code.

    At the end, also after an error, all of its processes are killed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    variables = environment(folder)
    with (folder / "log.txt").open("ab") as log, Progress(*columns, transient=True) as bar:
        task = bar.add_task("shards", total=num_shards)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        except OSError as error:
            # The command is there, but the Python that it names is not: its environment was moved.
            raise ConfigError(f"command={argv[0]} does not start: {error}; {_HOW}") from None

        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(0.5)
                finished = list((folder / "shards").glob("*_stats.json"))
                bar.update(task, completed=len(finished))
        finally:
            # SIGINT would not do: img2dataset's handler exits with 0 and leaves its workers writing.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _complete(shards: Path) -> dict[int, dict]:
    """Return the statistics of each finished shard, by its number.

    The statistics of a half-written shard are deleted, so that img2dataset makes the shard again.
    """
    stats = {}
    for path in sorted(shards.glob("*_stats.json")):
        number = path.name.removesuffix("_stats.json")
        try:
            is_whole = _is_whole(shards / f"{number}.tar")
            stat = json.loads(path.read_text()) if is_whole else None
        except (OSError, ValueError):
            stat = None

        if stat is None:
            path.unlink()
        else:
            stats[int(number)] = stat
    return stats


def _is_whole(path: Path) -> bool:
    """Return whether a tar ends with two empty blocks, as a complete archive does."""
    with path.open("rb") as tar:
        tar.seek(-1024, os.SEEK_END)
        return tar.read() == bytes(1024)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables for a process of img2dataset's.

    The result holds this process's variables, without PYTHONPATH, PYTHONHOME, and those whose names look like secrets.
    Added are two settings of img2dataset's packages, and a variable that holds `folder`, by which `alone` finds
    processes that a killed run has left behind.

    Args:
        folder: The folder that the process works in.
    """
    variables = {name: value for name, value in os.environ.items() if not _SECRETS.search(name)}
    # A few kilobytes may unpack to gigabytes.
    variables["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(50_000_000)
    variables["NO_ALBUMENTATIONS_UPDATE"] = "1"
    variables[_MARK] = str(folder)
    return variables


@contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """Hold the lock of a folder inside a `with` block; before it, kill the processes that a killed run left in it.

    Such processes would go on writing their shards. They are found in /proc, so on Linux alone, by the environment
    variable that `environment` sets.

    Args:
        folder: The folder; it is made if it is not there.

    Raises:
        ConfigError: If another process holds the lock.
    """
    with locked(folder / "lock", f"{folder}: another process is at it"):
        _end_orphans(folder)
        yield


def _end_orphans(folder: Path) -> None:
    """Kill the processes whose environment is marked with the folder."""
    mark = f"{_MARK}={folder}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        # Most processes belong to others, and some end in the meantime.
        with suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def tail(log: Path) -> str:
    """Return the last 15 lines of a text file, joined by line breaks; bytes that are no UTF-8 are replaced.

    Raises:
        OSError: If the file is not there or cannot be read.
    """
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-15:])
