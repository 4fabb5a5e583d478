"""`source=folder`: read a table of captions for a folder of pictures."""

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
    """The reader of a table of captions: a record is an image with the captions of all its rows.

    The key of a record is the number of its image's first row, and its `image_id` is the image's file name.

    Args:
        images: The folder of pictures.
        table: The path of the table. It may be a CSV with the columns `image` and `caption` (.csv, or Flickr8k's
            captions.txt), a list with a line `IMAGE#NUMBER<tab>CAPTION` for each caption (Flickr8k.token.txt), or
            JSON lines (.jsonl) of objects with `image` and `caption` (a text) or `captions` (a list).
    """

    images: str
    table: str

    FILES = ("table",)

    def check(self) -> None:
        """Check the values of the keys, that table and folder are there, and the table's suffix; nothing is opened.

        Raises:
            ConfigError: If a value cannot be used; the message names the key, the value, and what to do.
        """
        super().check()
        suffix = self._suffix()
        *first_suffixes, last_suffix = _SUFFIXES
        choices = f"{', '.join(first_suffixes)} or {last_suffix}"
        require(suffix in _SUFFIXES, f"table={self.table}: must be a {choices}, not {suffix!r}")

    def _suffix(self) -> str:
        """Return the suffix of the table's name in small letters, for example ".csv"."""
        return Path(self.table).suffix.lower()

    def read(self) -> dict[str, RawSplit]:
        """Read the table, and return one split of records, in the order of their images' first rows, by its name.

        The split is the value of `split`, or "train". Rows that cannot be read, or lack an image or a caption, are left
        out.

        Raises:
            ConfigError: If the table cannot be read, is not in UTF-8, or is a CSV without the two columns or with a
                quote that is left open.
        """
        raw_split = RawSplit()
        captions: dict[str, list[str]] = {}
        first_rows: dict[str, tuple[int, str]] = {}

        # The rows of an image need not follow one another.
        table_name = Path(self.table).name
        rows = self._rows(self._read_text())
        for number, (line, row) in enumerate(rows, start=1):
            where = f"{table_name}:{line}"
            if isinstance(row, str):
                raw_split.skip(where, "row", row)
                continue

            raw_image = row.get("image")
            row_captions = _captions(row)
            if not isinstance(raw_image, str) or not raw_image.strip():
                raw_split.skip(where, "no image", "the row names none")
            elif not row_captions:
                raw_split.skip(where, "no caption", f"{raw_image!r} is given none")
            else:
                image = raw_image.strip()
                captions.setdefault(image, []).extend(row_captions)
                first_rows.setdefault(image, (number, where))

        for image, (number, where) in first_rows.items():
            key = f"{number:08d}"
            names = (image,)
            text = {"captions": captions[image], "image_id": image}
            record = RawRecord(key, (names,), text, where)
            raw_split.add(record)
        return {self.split or "train": raw_split}

    def _read_text(self) -> str:
        """Return the whole text of the table."""
        path = Path(self.table).expanduser()
        # Spreadsheets write a byte order mark before the first column's name: utf-8-sig drops it.
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"table={self.table}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
        except OSError as error:
            raise ConfigError(f"table={self.table}: cannot be read ({error.strerror})") from error

    def _rows(self, text: str) -> Iterator[tuple[int, dict | str]]:
        """Return the rows of the table, each with the number of its line.

        The suffix of the table and its first line show its format. A row that cannot be read is a text that says why.
        """
        suffix = self._suffix()
        if suffix == ".jsonl":
            return _jsonl(text)
        if suffix != ".csv" and _NUMBERED.match(text):
            return _numbered(text)
        return self._csv(text)

    def _csv(self, text: str) -> Iterator[tuple[int, dict | str]]:
        """Yield each row of a CSV with the number of the line on which it begins."""
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines)
        # A caption may hold line breaks, so that a row is named by the line on which it begins.
        begin = 1
        try:
            columns = next(reader, [])
            names = [name.strip().lower() for name in columns]
            if names.count("image") != 1 or names.count("caption") != 1:
                column_list = ", ".join(columns) or "nothing"
                raise ConfigError(
                    f"table={self.table}: its first line must name the columns image and caption; it has {column_list}"
                )

            num_names = len(names)
            begin = reader.line_num + 1
            for row in reader:
                num_columns = len(row)
                if num_columns == num_names:
                    yield begin, dict(zip(names, row, strict=True))
                elif row:
                    problem = f"{num_columns} columns, and the first line names {num_names}"
                    if num_columns > num_names:
                        problem += ": a caption with a comma stands in double quotes"
                    yield begin, problem
                begin = reader.line_num + 1
        except csv.Error as error:
            raise ConfigError(f"table={self.table}: line {begin} is no CSV ({error}): is a quote left open?") from error


def _numbered(text: str) -> Iterator[tuple[int, dict | str]]:
    """Yield each row of a list in the layout of `Flickr8k.token.txt`, with the number of its line."""
    for line, content in enumerate(text.split("\n"), start=1):
        match = _NUMBERED.fullmatch(content.rstrip("\r"))
        if match:
            image, caption = match.groups()
            yield line, {"image": image, "caption": caption}
        elif content.strip():
            yield line, "no IMAGE#NUMBER, a tab and a caption"


def _jsonl(text: str) -> Iterator[tuple[int, dict | str]]:
    """Yield the object of each line of JSON lines, with the number of the line."""
    # Not `splitlines`: JSON texts may hold other line breaks, such as U+2028.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"no JSON ({error})"
            continue

        if isinstance(row, dict):
            yield line, row
        else:
            yield line, "no JSON object"


def _captions(row: dict) -> list[str]:
    """Return the captions of a row: that of `caption`, then those of `captions`."""
    candidates = [row.get("caption")]
    several = row.get("captions")
    if isinstance(several, list):
        candidates += several
    return texts(candidates)
