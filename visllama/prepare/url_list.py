"""Read lists of URLs as they are published, and write those rows that may be downloaded as JSON lines.

CC-3M's is a TSV (caption, URL, no header); COYO-700M's are parquet files, which img2dataset's own Python reads, so that
we need no pyarrow. JSON lines leave img2dataset nothing to misread: no quotes, no captions that look like dates.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.progress import track

from visllama.errors import ConfigError
from visllama.prepare.img2dataset import environment, tail

if TYPE_CHECKING:
    from visllama.prepare.request import Download

_SHARDS_PER_FILE = 100
"""img2dataset holds a whole file of its list in memory."""
_MOST_CHARACTERS = 50_000
"""img2dataset reads no line beyond a megabyte."""
_COUNTS = "counts.json"
"""The file beside the rows of a list that holds how many there are."""
# The program that img2dataset's Python runs: the number of rows, then a row a line. NaN is written as null.
_READ_PARQUET = """
import json, sys
import pyarrow.parquet as pq
columns, files = json.loads(sys.argv[1]), sys.argv[2:]
def values(column):
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [v if v is None else v.decode("utf-8", "replace") for v in column.cast("binary").to_pylist()]
for file in files:
    names = pq.read_schema(file).names
    if absent := set(columns) - set(names):
        sys.exit(f"{file} lacks {sorted(absent)}; it has {names}")
print(sum(pq.read_metadata(file).num_rows for file in files))
for file in files:
    for batch in pq.ParquetFile(file).iter_batches(10000, columns=columns):
        for row in zip(*(values(batch.column(c)) for c in columns)):
            print(json.dumps([None if v != v else v for v in row], default=str))
"""


def read_part(part: str | None) -> tuple[int, int]:
    """Read the key `part`, and return the number of the part, counted from 1, and the number of all parts.

    Args:
        part: For example "3/64", the third of 64 parts; None, for everything, returns (1, 1).

    Raises:
        ConfigError: If the text has another form, or its first number is 0 or greater than the second.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", part or "1/1")
    if match:
        number = int(match[1])
        num_parts = int(match[2])
        if 1 <= number <= num_parts:
            return number, num_parts
    raise ConfigError(f"part={part}: write it as 3/64, from 1/64 to 64/64")


def list_files(spec: Download) -> list[Path]:
    """Return the files of a list: the parquet files of a folder, sorted by name, or the one file that `list` names.

    Args:
        spec: The settings of the download, of which `list` and `score_columns` are read.

    Raises:
        ConfigError: If there is no such file, or `score_columns` are given for a TSV, which has none.
    """
    path = Path(spec.list).expanduser()
    is_folder = path.is_dir()
    files = sorted(path.glob("*.parquet")) if is_folder else [path]
    if not files or not files[0].is_file():
        problem = "a folder without *.parquet" if is_folder else "no such file"
        raise ConfigError(f"list={path}: {problem}")

    if spec.score_columns and not _is_parquet(files[0]):
        columns = list(spec.score_columns)
        raise ConfigError(f"score_columns={columns}: a TSV has none; only parquet files do")
    return files


def _is_parquet(file: Path) -> bool:
    """Return whether a file of a list is a parquet file by its name; any other file is a TSV."""
    return file.suffix == ".parquet"


def write_list(spec: Download, folder: Path) -> dict:
    """Write those rows of a part of a list that may be downloaded to JSON lines files in the folder `folder/list`.

    Each line is an object with `url`, `caption` and the score columns. If `folder/list` is there already, nothing is
    written, and its counts are returned.

    Args:
        spec: The settings of the download: the list, its columns and the part. To read parquet files, the Python beside
            `spec.command`, which has to be an absolute path, is run.
        folder: The folder of the part, which has to be there. Error messages of that Python go to its `log.txt`.

    Returns:
        The counts: `rows` (all rows of the part), `kept` (those that were written), and `refused_urls` (the number of
        the others, by the reason that `refusal` returns).

    Raises:
        ConfigError: If the list cannot be read, or no row is left.
    """
    target = folder / "list"
    if target.exists():
        counts_text = (target / _COUNTS).read_text()
        return json.loads(counts_text)

    # A list that was cut short is written anew, and takes its name when it is whole.
    temporary = folder / "list.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()

    reasons: Counter[str | None] = Counter()
    lines = _kept_lines(spec, folder / "log.txt", reasons)
    _write_files(lines, temporary, _SHARDS_PER_FILE * spec.samples_per_shard)

    rows = reasons.total()
    kept = reasons.pop(None, 0)
    counts = {"rows": rows, "kept": kept, "refused_urls": dict(reasons.most_common())}
    if not kept:
        raise ConfigError(f"list={spec.list}: no row that can be downloaded: {counts}")

    counts_file = temporary / _COUNTS
    counts_file.write_text(json.dumps(counts))
    os.replace(temporary, target)
    return counts


def _write_files(lines: Iterator[str], folder: Path, lines_per_file: int) -> None:
    """Write lines to numbered JSON lines files, so many lines to each but the last."""
    numbered_lines = enumerate(lines)
    files = groupby(numbered_lines, lambda numbered: numbered[0] // lines_per_file)
    for number, group in files:
        path = folder / f"{number:07d}.jsonl"
        with path.open("w") as file:
            file.writelines(line for _, line in group)


def _kept_lines(spec: Download, log: Path, reasons: Counter[str | None]) -> Iterator[str]:
    """Yield a JSON line for each row of the part that may be downloaded.

    Args:
        spec: The settings of the download.
        log: The file that error messages of img2dataset's Python are appended to.
        reasons: The counter of the reasons for which rows are dropped, which is filled; a row that is kept counts as
            None.
    """
    for url, caption, *scores in track(_rows(spec, log), "reading the list", transient=True):
        # A column may hold other things than texts, or nothing.
        url = str(url or "").strip()
        caption = str(caption or "").strip()
        reason = refusal(url, caption, spec.allow_private)
        reasons[reason] += 1
        if reason is None:
            row = {"url": url, "caption": caption}
            row.update(zip(spec.score_columns, scores, strict=True))
            yield json.dumps(row) + "\n"


def _rows(spec: Download, log: Path) -> Iterator[list]:
    """Yield URL, caption and scores of each row of the part.

    A part consists of whole parquet files; where there are fewer files than parts, it is a slice of all their rows.
    """
    files = list_files(spec)
    index, parts = read_part(spec.part)
    if not _is_parquet(files[0]):
        yield from _tsv_rows(files[0], index, parts)
    elif len(files) >= parts:
        files_of_part = files[index - 1 :: parts]
        yield from _parquet_rows(spec, files_of_part, 1, 1, log)
    else:
        yield from _parquet_rows(spec, files, index, parts, log)


def _bounds(total: int, index: int, parts: int) -> tuple[int, int]:
    """Return the first row of a part, and the row behind its last."""
    start = total * (index - 1) // parts
    stop = total * index // parts
    return start, stop


def _tsv_rows(file: Path, index: int, parts: int) -> Iterator[list]:
    """Yield URL and caption of each row of a slice of a TSV."""
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    start, stop = _bounds(total, index, parts)

    # Only a line feed ends a row: other line breaks stand inside captions.
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in islice(lines, start, stop):
            caption, _, url = line.rpartition("\t")
            yield [url, caption]


def _parquet_rows(spec: Download, files: list[Path], index: int, parts: int, log: Path) -> Iterator[list]:
    """Yield URL, caption and scores of each row of a slice of parquet files."""
    command = Path(spec.command).resolve()
    python = command.with_name("python")
    if not python.exists():
        raise ConfigError(f"command={spec.command}: the Python beside it reads parquet files, but there is none")

    columns = [spec.url_column, spec.caption_column, *spec.score_columns]
    paths = [str(file) for file in files]
    argv = [str(python), "-I", "-c", _READ_PARQUET, json.dumps(columns), *paths]
    variables = environment(log.parent)
    with (
        log.open("ab") as errors,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables) as reader,
    ):
        output = reader.stdout
        assert output is not None  # it is a pipe
        first = output.readline()
        total = int(first or 0)
        start, stop = _bounds(total, index, parts)
        num_read = 0
        for line in islice(output, start, stop):
            num_read += 1
            yield json.loads(line)

    # The program prints nothing, or too little, where a file cannot be read; its error is in the log.
    if not first or num_read < stop - start:
        last_lines = tail(log)
        raise ConfigError(f"list={spec.list} cannot be read by {python}:\n{last_lines}")


def refusal(url: str, caption: str, allow_private: bool = False) -> str | None:
    """Return the reason why a row of a list must not be downloaded, or None if it may be; the network is not asked.

    img2dataset itself has no such check: it would read local files (`file:` URLs) and hosts of the user's own network.

    Args:
        url: The URL of the row.
        caption: The caption of the row.
        allow_private: Whether URLs may name hosts of the user's own network.

    Returns:
        "not http(s)", "too long" (URL and caption together have more than 50,000 characters), "no host" (the URL has no
        host, or one that two programs could read differently), "private host" (one of the user's own network), "no
        caption" (the caption is empty), or None.
    """
    if not url.lower().startswith(("http://", "https://")):
        return "not http(s)"
    if len(url) + len(caption) > _MOST_CHARACTERS:
        return "too long"

    host = _host(url)
    if host is None:
        return "no host"
    if not allow_private and _is_private(host):
        return "private host"
    if not caption:
        return "no caption"
    return None


def _host(url: str) -> str | None:
    """Return the host of a URL, in ASCII; None if there is none, or not every program would read the same one."""
    try:
        parts = urlsplit(url)
        hostname = parts.hostname or ""
        # As urllib does before it connects.
        host = hostname.encode("idna").decode().rstrip(".")
        # It raises an error where the port is no number.
        _ = parts.port
    except ValueError:
        return None

    # What urlsplit and urllib read differently: controls, escapes, user names.
    if re.search(r"[\x00-\x20\x7f]", url):
        return None
    if re.search(r"[%@\\]", parts.netloc):
        return None
    if not re.fullmatch(r"[\w.:-]+", host):
        return None
    return host


def _is_private(host: str) -> bool:
    """Return whether a host is one of one's own network, by its name or its address alone."""
    is_ipv6 = ":" in host
    is_single_word = "." not in host and not is_ipv6
    if is_single_word or host.endswith((".localhost", ".local", ".internal")):
        return True

    # The last part of an IPv4 address begins with a digit; that of a name never does.
    _, _, last = host.rpartition(".")
    if not is_ipv6 and not last[:1].isdigit():
        return False

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # The system's own reading of addresses accepts more: 127.1, 0x7f.0.0.1.
        try:
            packed = socket.inet_aton(host)
            address = ipaddress.IPv4Address(packed)
        except OSError:
            return False

    # An IPv6 address may stand for an IPv4 address: ::ffff:127.0.0.1.
    address = getattr(address, "ipv4_mapped", None) or address
    return not address.is_global or address.is_multicast
