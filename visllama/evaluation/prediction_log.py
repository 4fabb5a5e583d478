"""The log of what a model has written: a line for each prompt, there as soon as its batch is done.

It is what a judgement goes on from after it was killed. A key beside it says what made the texts: those of other
weights or of another decoding are never mixed with new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from visllama.errors import ConfigError
from visllama.files import read_regular, write_whole

_MOST_BYTES = 2**32


class Written(NamedTuple):
    """A text that the model has written.

    Attributes:
        text: The text, in one line.
        num_tokens: The number of tokens that it was made of, its end token not counted.
        is_cut_off: Whether `max_new_tokens` has ended it, and not the model.
    """

    text: str
    num_tokens: int
    is_cut_off: bool


class PredictionLog:
    """A file of JSON lines that grows by a batch at a time.

    Args:
        path: The file.
        ids: What a line says of its prompt beside the text, as `{"image_id": 7}`, in the order of the prompts.
        name: The key under which a line holds the text, as `caption`.
        made_by: What made the texts, part by part, as plain values.
        refuses_others: Whether texts that something else has made are refused; otherwise they are begun anew.
    """

    def __init__(
        self, path: Path, ids: Sequence[Mapping], name: str, made_by: Mapping[str, object], refuses_others: bool
    ) -> None:
        self.path = path
        self._ids = ids
        self._name = name
        self._made_by = made_by
        self._refuses_others = refuses_others
        self._num_bytes = 0

    def read(self) -> list[Written]:
        """Return the texts that are there already, without a line that was cut by a kill.

        Raises:
            ConfigError: If they were made by something else, naming what differs, or the file is not what was written.
        """
        if not self.path.is_file():
            return []
        if self._refuses_others:
            refuse_other_key(self.path, self._made_by)
        if _read_key(self.path) != _as_read(self._made_by):
            return []
        lines = self._whole_lines()
        rows = [self._parse(number, line) for number, line in enumerate(lines)]
        self._num_bytes = len("".join(f"{line}\n" for line in lines).encode())
        if len(rows) > len(self._ids):
            raise ConfigError(f"{self.path}: holds {len(rows)} predictions, and {len(self._ids)} are judged")
        return rows

    def begin(self, num_written: int) -> None:
        """Open the file to go on behind the texts that `read` has found; they stay where they are, whatever happens.

        Args:
            num_written: How many there are.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        self._file.truncate(self._num_bytes)
        write_whole(_key_path(self.path), json.dumps(self._made_by, indent=2) + "\n")
        self._num_lines = num_written

    def add(self, written: Sequence[Written]) -> None:
        """Write the texts of the next prompts, and hand them to the operating system."""
        for text, num_tokens, is_cut_off in written:
            row = {**self._ids[self._num_lines], self._name: text, "tokens": num_tokens}
            row["finish_reason"] = "length" if is_cut_off else "stop"
            self._file.write(json.dumps(row) + "\n")
            self._num_lines += 1
        self._file.flush()

    def close(self) -> None:
        """Close the file, once its content is on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _whole_lines(self) -> list[str]:
        content = read_regular(self.path, _MOST_BYTES)
        return content[: content.rfind("\n") + 1].split("\n")[:-1]

    def _parse(self, number: int, line: str) -> Written:
        try:
            row = json.loads(line)
            expected = self._ids[number] if number < len(self._ids) else {}
            if any(row[name] != value for name, value in expected.items()):
                raise ValueError(f"it is of another prompt than {expected}")
            return Written(str(row[self._name]), int(row["tokens"]), row["finish_reason"] == "length")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"{self.path}: line {number + 1} is not as it was written ({error}): remove the file, and judge again"
            ) from error


def refuse_other_key(path: Path, made_by: Mapping[str, object]) -> None:
    """Refuse a log that was made by something else; without a log there is nothing to refuse.

    Args:
        path: The file of the log.
        made_by: What would make its texts now, part by part, as plain values.

    Raises:
        ConfigError: Naming what differs.
    """
    before = _read_key(path)
    now = _as_read(made_by)
    if before is None or before == now:
        return
    names = [*now, *(name for name in before if name not in now)]
    differing = [name for name in names if before.get(name) != now.get(name)]
    shown = ", ".join(f"{name}={before.get(name)} there, {now.get(name)} now" for name in differing[:3])
    raise ConfigError(
        f"{path}: was written by another {' and '.join(differing)} ({shown}): results of both would not be one: leave "
        f"out resume= and begin in a new folder"
    )


def _key_path(path: Path) -> Path:
    return path.with_suffix(".key.json")


def _as_read(made_by: Mapping[str, object]) -> dict:
    """Return values as they are read back from JSON, where a tuple is a list."""
    return json.loads(json.dumps(made_by))


def _read_key(path: Path) -> dict | None:
    """Return what made the texts of a log; None where that is not there, or is no key."""
    try:
        key = json.loads(read_regular(_key_path(path)))
    except (OSError, ValueError, RecursionError):
        return None
    return key if isinstance(key, dict) else None
