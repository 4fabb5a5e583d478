"""URL lists as they are published, read and filtered: what may be downloaded is written as JSON lines.

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

_SHARDS_PER_FILE = 100  # img2dataset holds a whole file of its list in memory
_MOST_CHARACTERS = 50_000  # it reads no line beyond a megabyte
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
    """Read `3/64`: the third of 64; None is everything.

    Raises:
        ConfigError: If it is not written so.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", part or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"part={part}: write it as 3/64, from 1/64 to 64/64")
    return int(match[1]), int(match[2])


def list_files(spec: Download) -> list[Path]:
    """Return the files of the list, in their order.

    Raises:
        ConfigError: If there are none, or a TSV is asked for scores.
    """
    path = Path(spec.list).expanduser()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConfigError(f"list={path}: {'a folder without *.parquet' if path.is_dir() else 'no such file'}")
    if spec.score_columns and files[0].suffix != ".parquet":
        raise ConfigError(f"score_columns={[*spec.score_columns]}: a TSV has none; only parquet files do")
    return files


def write_list(spec: Download, folder: Path) -> dict:
    """Write the part's rows that may be downloaded to `folder/list`, unless it is there.

    Returns:
        The number of `rows`, of those `kept`, and of `refused_urls` by reason.

    Raises:
        ConfigError: If the list cannot be read, or no row is left.
    """
    target, temporary = folder / "list", folder / "list.part"
    if target.exists():
        return json.loads((target / "counts.json").read_text())
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    reasons, rows_per_file = Counter(), _SHARDS_PER_FILE * spec.samples_per_shard
    lines = enumerate(_kept(spec, folder / "log.txt", reasons))
    for number, group in groupby(lines, lambda numbered: numbered[0] // rows_per_file):
        with (temporary / f"{number:07d}.jsonl").open("w") as file:
            file.writelines(line for _, line in group)
    rows, kept = reasons.total(), reasons.pop(None, 0)
    counts = {"rows": rows, "kept": kept, "refused_urls": dict(reasons.most_common())}
    if not kept:
        raise ConfigError(f"list={spec.list}: no row that can be downloaded: {counts}")
    (temporary / "counts.json").write_text(json.dumps(counts))
    os.replace(temporary, target)
    return counts


def _kept(spec: Download, log: Path, reasons: Counter) -> Iterator[str]:
    """Return the lines of rows that may be downloaded; counts the reasons of the others, and None for these."""
    for url, caption, *scores in track(_rows(spec, log), "reading the list", transient=True):
        url, caption = str(url or "").strip(), str(caption or "").strip()
        reason = refusal(url, caption, spec.allow_private)
        reasons[reason] += 1
        if reason is None:
            row = {"url": url, "caption": caption, **dict(zip(spec.score_columns, scores, strict=True))}
            yield json.dumps(row) + "\n"


def _rows(spec: Download, log: Path) -> Iterator[list]:
    """Return URL, caption and scores of each row of the part: whole files, or a slice where they are few."""
    files, (index, parts) = list_files(spec), read_part(spec.part)
    if files[0].suffix != ".parquet":
        yield from _tsv_rows(files[0], index, parts)
    elif len(files) >= parts:
        yield from _parquet_rows(spec, files[index - 1 :: parts], 1, 1, log)
    else:
        yield from _parquet_rows(spec, files, index, parts, log)


def _bounds(total: int, index: int, parts: int) -> tuple[int, int]:
    return total * (index - 1) // parts, total * index // parts


def _tsv_rows(file: Path, index: int, parts: int) -> Iterator[list]:
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in islice(lines, *_bounds(total, index, parts)):
            caption, _, url = line.rpartition("\t")
            yield [url, caption]


def _parquet_rows(spec: Download, files: list[Path], index: int, parts: int, log: Path) -> Iterator[list]:
    python = Path(spec.command).resolve().with_name("python")
    if not python.exists():
        raise ConfigError(f"command={spec.command}: the Python beside it reads parquet files, but there is none")
    columns = json.dumps([spec.url_column, spec.caption_column, *spec.score_columns])
    argv = [str(python), "-I", "-c", _READ_PARQUET, columns, *map(str, files)]
    options = {"text": True, "env": environment(log.parent)}
    with log.open("ab") as errors, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, **options) as reader:
        first = reader.stdout.readline()
        start, stop = _bounds(int(first or 0), index, parts)
        got = 0
        for line in islice(reader.stdout, start, stop):
            got += 1
            yield json.loads(line)
    if not first or got < stop - start:
        raise ConfigError(f"list={spec.list} cannot be read by {python}:\n{tail(log)}")


def refusal(url: str, caption: str, allow_private: bool = False) -> str | None:
    """Return why a row is dropped: img2dataset would pack `file:` URLs, and ask hosts of one's own network."""
    if not url.lower().startswith(("http://", "https://")):
        return "not http(s)"
    if len(url) + len(caption) > _MOST_CHARACTERS:
        return "too long"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode().rstrip(".")  # as urllib does before it connects
        _ = parts.port
    except ValueError:
        return "no host"
    # What urlsplit and urllib read differently: escapes, user names, controls.
    if re.search(r"[\x00-\x20\x7f]", url) or re.search(r"[%@\\]", parts.netloc) or not re.fullmatch(r"[\w.:-]+", host):
        return "no host"
    if not allow_private and _is_private(host):
        return "private host"
    return None if caption else "no caption"


def _is_private(host: str) -> bool:
    if ("." not in host and ":" not in host) or host.endswith((".localhost", ".local", ".internal")):
        return True
    if ":" not in host and not host.rpartition(".")[2][:1].isdigit():
        return False  # a name
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f.0.0.1
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return not address.is_global or address.is_multicast
