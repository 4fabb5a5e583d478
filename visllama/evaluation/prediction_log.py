"""The log of a model's texts: a file with a line for each prompt, which is written as soon as its batch is done.

A judgement that was killed goes on from its log. A key file beside the log (`predictions.key.json`) holds what made the
texts, so that texts of other weights or of another decoding are never mixed with new ones.
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
    """A text that the model has generated.

    Attributes:
        text: The text, in one line.
        num_tokens: The number of tokens of the text, without its end token.
        is_cut_off: Whether the text ends because it reached `max_new_tokens`, and not by an end token or stop string.
    """

    text: str
    num_tokens: int
    is_cut_off: bool


class PredictionLog:
    """A file of JSON lines, one for each prompt, to which texts are added batch by batch.

    The methods are called in this order: `read`, `begin`, `add` for each batch, `close`. A new object opens no file.

    Args:
        path: The file; neither the file nor its folder has to exist.
        ids: The id of each prompt, as `{"image_id": 7}`, in the order of the prompts. Each line holds the entries of
            its prompt's mapping.
        name: The key under which a line holds the text, for example `caption`.
        made_by: Everything that decides the texts (weights, prompt, decoding, ...), by name and as plain values.
        refuses_others: Whether texts of the file that were made by anything else than `made_by` are refused; otherwise
            they are overwritten.

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
        """Read the file, and return the texts that it holds already, in the order of the prompts.

        Beside the file stands what made its texts: the weights, the prompts and the settings of generation. If one of
        these is another one now, the texts are not returned and will be overwritten, or with `refuses_others` an error
        is raised. The list is also empty if there is no file. A last line that was cut when a process was killed is
        left out.

        Raises:
            ConfigError: If the texts were made by something else and `refuses_others` is set, naming what differs; if a
                line is not as it was written; or if the file holds more texts than there are prompts.
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
        """Open the file for `add`, which writes behind the texts that `read` has returned; the rest is cut off.

        The folder is made if it is missing, and the key file is written. The texts that `read` has returned are not
        written again, so that no crash can lose them.

        Args:
            num_written: The number of texts that `read` has returned.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        # Removes a line that was cut by a kill, or all lines of another key.
        self._file.truncate(self._num_bytes)

        # After the truncation: a crash in between must not leave the texts of something else beside the new key.
        write_whole(_key_path(self.path), json.dumps(self._made_by, indent=2) + "\n")
        self._num_lines = num_written

    def add(self, written: Sequence[Written]) -> None:
        """Write a line for each of the next prompts, and flush the file, so that a killed process loses no line.

        `begin` has to be called before.

        Args:
            written: The texts of the next prompts, in the order of the prompts.
        """
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
        """Wait until the content has reached the disk, and close the file; `begin` has to be called before."""
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
    """Check that the texts of a log were made by `made_by`, by reading the key file beside the log.

    A log without a readable key file passes.

    Args:
        path: The file of the log, as `predictions.jsonl`.
        made_by: Everything that would decide the texts now (weights, prompt, decoding, ...), by name and as plain
            values.

    Raises:
        ConfigError: If the key file holds other values; the message names the first three that differ.
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
