"""Decide which words of a command in a folder may be used: plain values always, those that choose code by a seal only.

A folder may be anybody's, also one that this user unpacked and therefore owns. So a command that this user's visllama
writes bears a seal: an HMAC of the command and its folder, with a secret that lies in the user's home and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from visllama.config.schema import conf_dir
from visllama.plugins import ALLOWED_TARGETS

_SECRET_BYTES = 32
_KEY = re.compile(r"[A-Za-z_][\w-]*([./][\w-]+)*")
_PACKAGE = re.compile(r"[A-Za-z]\w*(\.\w+)*")
_OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_CODE = re.compile(r"(hydra|plugins)([./].*)?")
"""Keys and packages below which a value chooses what runs."""
_TARGET = "_target_"


def chooses_code(word: str) -> bool:
    """Return whether an override may choose which code runs, or read something outside the config.

    It is False for plain values alone. It is True for `plugins`, `hydra.*`, a `_target_` that is not allowed without
    plugins, a path to a YAML outside our groups, `${...}` (which can read environment variables), an override with
    several values, and a word that is no override, as an option of Hydra's.

    Args:
        word: One word of a command line.
    """
    if word.startswith("-") or "${" in word:
        return True
    try:
        parsed = OverridesParser.create().parse_override(word)
        has_value = not parsed.is_delete() and not parsed.is_sweep_override()
        value = parsed.value() if has_value else None
    except Exception:
        # Hydra accepts no word that does not parse, so this one was not written by a run.
        return True

    key = parsed.key_or_group
    if parsed.is_sweep_override() or not _KEY.fullmatch(key) or _CODE.fullmatch(key):
        return True

    # `group@hydra=option` would put the option's plain values where they choose code.
    package = parsed.package
    if package is not None and (not _PACKAGE.fullmatch(package) or _CODE.fullmatch(package)):
        return True

    last_name = key.rpartition(".")[2]
    strings = list(_strings(last_name, value))
    for name, text in strings:
        if name == _TARGET and not text.startswith(ALLOWED_TARGETS):
            return True

    # A group's option is a path, which Hydra follows wherever it leads.
    is_plain_option = all(_OPTION.fullmatch(text) for _, text in strings)
    return _is_group(key) and not is_plain_option


def _is_group(key: str) -> bool:
    """Return whether a key names a config group, whose options are YAML files."""
    return "/" in key or key == "local" or (conf_dir() / key).is_dir()


def _strings(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield each value inside nested dictionaries and lists as text, with the last name of the key that holds it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(name, inner)
    elif value is not None:
        yield name, str(value)


def seal(folder: Path, command: object) -> str | None:
    """Return this user's seal on a command: an HMAC in hexadecimal digits, over the folder and the command.

    The user's secret is read from the state folder in the home, and made at its first use.

    Args:
        folder: The folder that the command is kept in; it need not exist.
        command: The command, as lists and texts that JSON can hold.

    Returns:
        The seal, or None where there is no place for the secret that is this user's alone.
    """
    secret = _secret()
    if secret is None:
        return None

    # The folder is sealed too: a command that is copied elsewhere would otherwise keep its seal.
    content = json.dumps([str(folder.resolve()), command])
    return hmac.new(secret, content.encode(), hashlib.sha256).hexdigest()


def is_sealed(folder: Path, command: object, written_seal: object) -> bool:
    """Return whether a command bears this user's seal for the very folder that it lies in.

    Args:
        folder: The folder that the command lies in.
        command: The command, of the same form that was given to `seal`.
        written_seal: The seal that was read beside it, of whatever type; anything but the right text gives False.
    """
    expected = seal(folder, command)
    if expected is None or not isinstance(written_seal, str):
        return False
    return hmac.compare_digest(expected.encode(), written_seal.encode())


def _secret() -> bytes | None:
    """Return this user's secret, which is made at its first use; None where no place for it is the user's alone."""
    try:
        place = _state_folder() / "key"
        if not place.exists():
            _make_secret(place)

        # No link is followed, and no pipe is waited for: either could be another user's.
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            secret = file.read(_SECRET_BYTES + 1)
    except (OSError, RuntimeError):
        # pathlib raises RuntimeError where the user has no home.
        return None

    is_own = status.st_uid == os.geteuid()
    is_shared = bool(status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    if not is_own or is_shared or len(secret) != _SECRET_BYTES:
        return None
    return secret


def _state_folder() -> Path:
    """Return the folder in which visllama keeps what belongs to this user, by `XDG_STATE_HOME` or in the home."""
    configured = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path is ignored.
    if os.path.isabs(configured):
        return Path(configured) / "visllama"
    return Path.home() / ".local" / "state" / "visllama"


def _make_secret(place: Path) -> None:
    """Write a new secret, readable by this user alone, unless another process has written one meanwhile."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))

        # A link is made whole or not at all, and never over a file that is there.
        with suppress(FileExistsError):
            os.link(temporary, place)
    finally:
        os.unlink(temporary)
