"""`source=folder`: a folder of pictures, and a table that gives each its captions."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visllama.errors import ConfigError, require
from visllama.prepare.raw import RawData, RawRecord, RawSplit, texts

_SUFFIXES = (".csv", ".txt", ".token", ".jsonl")
_NUMBERED = re.compile(r"(.+)#[0-9]+\t(.*)")
"""A line of `Flickr8k.token.txt`: an image, the number of its caption, and that caption."""


@dataclass(frozen=True)
class Folder(RawData):
    """Pictures with captions; a record's key is the number of the image's first row, its own id the image's file name.

    Args:
        images: The folder of pictures.
        table: A CSV with the columns `image` and `caption` (.csv, or Flickr8k's captions.txt), a list of
            `IMAGE#NUMBER<tab>CAPTION` (Flickr8k.token.txt), or a .jsonl with `image` and `caption` or `captions`;
            several rows of one image are several captions.
    """

    images: str
    table: str

    FILES = ("table",)

    def check(self) -> None:
        super().check()
        suffix = Path(self.table).suffix.lower()
        known = f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"
        require(suffix in _SUFFIXES, f"table={self.table}: must be a {known}, not {suffix!r}")

    def read(self) -> dict[str, RawSplit]:
        try:
            text = Path(self.table).expanduser().read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"table={self.table}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
        except OSError as error:
            raise ConfigError(f"table={self.table}: cannot be read ({error.strerror})") from error
        rows = self._rows(text)
        made, captions, first = RawSplit(), {}, {}
        for number, (line, row) in enumerate(rows, start=1):
            where = f"{Path(self.table).name}:{line}"
            if isinstance(row, str):
                made.skip(where, "row", row)
                continue
            image, said = row.get("image"), _captions(row)
            if not isinstance(image, str) or not image.strip():
                made.skip(where, "no image", "the row names none")
            elif not said:
                made.skip(where, "no caption", f"{image!r} is given none")
            else:
                captions.setdefault(image.strip(), []).extend(said)
                first.setdefault(image.strip(), (number, where))
        for image, (number, where) in first.items():
            text = {"captions": captions[image], "image_id": image}
            made.add(RawRecord(f"{number:08d}", ((image,),), text, where))
        return {self.split or "train": made}

    def _rows(self, text: str) -> Iterator[tuple[int, dict | str]]:
        """Return the table's rows, each with its line, as what its suffix and its first line say it is."""
        suffix = Path(self.table).suffix.lower()
        if suffix == ".jsonl":
            return _jsonl(text)
        if suffix != ".csv" and _NUMBERED.match(text):
            return _numbered(text)
        return self._csv(text)

    def _csv(self, text: str) -> Iterator[tuple[int, dict | str]]:
        reader = csv.reader(io.StringIO(text, newline=""))
        begin = 1
        try:
            columns = next(reader, [])
            names = [name.strip().lower() for name in columns]
            for column in ("image", "caption"):
                if names.count(column) != 1:
                    raise ConfigError(
                        f"table={self.table}: its first line must name the columns image and caption; it has "
                        f"{', '.join(columns) or 'nothing'}"
                    )
            begin = reader.line_num + 1
            for row in reader:
                if len(row) == len(names):
                    yield begin, dict(zip(names, row, strict=True))
                elif row:
                    quote = ": a caption with a comma stands in double quotes" if len(row) > len(names) else ""
                    yield begin, f"{len(row)} columns, and the first line names {len(names)}{quote}"
                begin = reader.line_num + 1
        except csv.Error as error:
            raise ConfigError(f"table={self.table}: line {begin} is no CSV ({error}): is a quote left open?") from error


def _numbered(text: str) -> Iterator[tuple[int, dict | str]]:
    for line, content in enumerate(text.split("\n"), start=1):
        found = _NUMBERED.fullmatch(content.rstrip("\r"))
        if found:
            yield line, {"image": found.group(1), "caption": found.group(2)}
        elif content.strip():
            yield line, "no IMAGE#NUMBER, a tab and a caption"


def _jsonl(text: str) -> Iterator[tuple[int, dict | str]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                row = json.loads(content)
                yield line, row if isinstance(row, dict) else "no JSON object"
            except (ValueError, RecursionError) as error:
                yield line, f"no JSON ({error})"


def _captions(row: dict) -> list[str]:
    several = row.get("captions")
    return texts([row.get("caption"), *(several if isinstance(several, list) else [])])
