"""The log of a model's texts: one line for each prompt, written as soon as the batch is done.

A judgement that was killed goes on from its log. A key file beside the log holds what made the texts, so that texts of
other weights or of another decoding are never mixed with new ones.
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
        num_tokens: The number of tokens of the text, without its end token.
        is_cut_off: Whether `max_new_tokens` has ended the text, and not the model.
    """

    text: str
    num_tokens: int
    is_cut_off: bool


class PredictionLog:
    """A file of JSON lines that grows batch by batch.

    Args:
        path: The file.
        ids: The id of each prompt, as `{"image_id": 7}`, in the order of the prompts.
        name: The key under which a line holds the text, for example `caption`.
        made_by: Everything that decides the texts, part by part, as plain values.
        refuses_others: Whether texts that something else has made are refused; otherwise they are overwritten.

    Attributes:
        path: The file.
    """

    def __init__(
        self,
        path: Path,
        ids: Sequence[Mapping],
        name: str,
        made_by: Mapping[str, object],
        refuses_others: bool,
    ) -> None:
        self.path = path
        self._ids = ids
        self._name = name
        self._made_by = made_by
        self._refuses_others = refuses_others
        self._num_bytes = 0

    def read(self) -> list[Written]:
        """Return the texts that are in the file already, without a line that was cut by a kill.

        Raises:
            ConfigError: If something else has made the texts and others are refused, naming what differs, or if a line
                is not as it was written.
        """
        if not self.path.is_file():
            return []

        if self._refuses_others:
            refuse_other_key(self.path, self._made_by)
        if _read_key(self.path) != _as_read(self._made_by):
            return []

        lines = self._whole_lines()
        texts = [self._parse(number, line) for number, line in enumerate(lines)]
        if len(texts) > len(self._ids):
            raise ConfigError(f"{self.path}: holds {len(texts)} predictions, and {len(self._ids)} are judged")

        content = "".join(f"{line}\n" for line in lines)
        self._num_bytes = len(content.encode())
        return texts

    def begin(self, num_written: int) -> None:
        """Open the file to go on behind the texts that `read` has returned.

        Those texts are never written again, so that no crash can lose them.

        Args:
            num_written: The number of those texts.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        # Removes a line that was cut by a kill, or all lines of another key.
        self._file.truncate(self._num_bytes)

        # After the truncation: a crash in between must not leave the texts of something else beside the new key.
        write_whole(_key_path(self.path), json.dumps(self._made_by, indent=2) + "\n")
        self._num_lines = num_written

    def add(self, written: Sequence[Written]) -> None:
        """Write the texts of the next prompts, and hand them to the operating system."""
        for text, num_tokens, is_cut_off in written:
            row = {
                **self._ids[self._num_lines],
                self._name: text,
                "tokens": num_tokens,
                "finish_reason": "length" if is_cut_off else "stop",
            }
            self._file.write(json.dumps(row) + "\n")
            self._num_lines += 1

        # What the operating system has is not lost when this process is killed.
        self._file.flush()

    def close(self) -> None:
        """Close the file after its content has reached the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _whole_lines(self) -> list[str]:
        """Return the lines that end with a line break; only the last line can have been cut by a kill."""
        content = read_regular(self.path, _MOST_BYTES)
        *whole_lines, _ = content.split("\n")
        return whole_lines

    def _parse(self, number: int, line: str) -> Written:
        """Return the text of a line, which has to be that of the prompt of the same number."""
        try:
            row = json.loads(line)
            expected = self._ids[number] if number < len(self._ids) else {}
            if any(row[name] != value for name, value in expected.items()):
                raise ValueError(f"it is of another prompt than {expected}")
            is_cut_off = row["finish_reason"] == "length"
            return Written(str(row[self._name]), int(row["tokens"]), is_cut_off)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"{self.path}: line {number + 1} is not as it was written ({error}): remove the file, and judge again"
            ) from error


def refuse_other_key(path: Path, made_by: Mapping[str, object]) -> None:
    """Refuse a log that something else has made. A log without a key is not refused.

    Args:
        path: The file of the log.
        made_by: Everything that would decide the texts now, part by part, as plain values.

    Raises:
        ConfigError: If something else has made the log, naming what differs.
    """
    before = _read_key(path)
    now = _as_read(made_by)
    if before is None or before == now:
        return

    names = [*now, *(name for name in before if name not in now)]
    differing = [name for name in names if before.get(name) != now.get(name)]
    # More than three would be a message that nobody reads.
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
    """Return the key of a log: what made its texts. None if there is no key file, or it holds no key."""
    try:
        key = json.loads(read_regular(_key_path(path)))
    except (OSError, ValueError, RecursionError):
        return None
    return key if isinstance(key, dict) else None
