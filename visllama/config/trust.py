"""What is believed of a command that lies in a folder: plain values always, what chooses code only from this user.

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
_TARGET = "_target_"


def chooses_code(word: str) -> bool:
    """Return whether an override may choose what runs, or read what the config does not hold.

    That is all but plain values: `plugins`, every `hydra.*`, a `_target_` that is not ours, a YAML from outside our
    groups, `${...}` (which reads environment variables), and what is no override at all, as an option of Hydra's.
    """
    if word.startswith("-") or "${" in word:
        return True
    try:
        parsed = OverridesParser.create().parse_override(word)
        value = None if parsed.is_delete() or parsed.is_sweep_override() else parsed.value()
    except Exception:  # whatever does not parse is nothing that Hydra accepted
        return True
    key, package = parsed.key_or_group, parsed.package
    if parsed.is_sweep_override() or not _KEY.fullmatch(key) or _CODE.fullmatch(key):
        return True
    if package is not None and (not _PACKAGE.fullmatch(package) or _CODE.fullmatch(package)):
        return True
    strings = list(_strings(key.rpartition(".")[2], value))
    if any(name == _TARGET and not text.startswith(ALLOWED_TARGETS) for name, text in strings):
        return True
    # A group's option is a path, which Hydra follows wherever it leads.
    return _is_group(key) and not all(_OPTION.fullmatch(text) for _, text in strings)


def _is_group(key: str) -> bool:
    return "/" in key or key == "local" or (conf_dir() / key).is_dir()


def _strings(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield each value below a key, as text, with the name that it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(name, inner)
    elif value is not None:
        yield name, str(value)


def seal(folder: Path, command: object) -> str | None:
    """Return this user's seal on a command that is kept in a folder; None where the user's secret cannot be kept."""
    secret = _secret()
    if secret is None:
        return None
    content = json.dumps([str(folder.resolve()), command])
    return hmac.new(secret, content.encode(), hashlib.sha256).hexdigest()


def is_sealed(folder: Path, command: object, found: object) -> bool:
    """Return whether this user wrote a command for the very folder that it lies in."""
    expected = seal(folder, command)
    return expected is not None and isinstance(found, str) and hmac.compare_digest(expected.encode(), found.encode())


def _secret() -> bytes | None:
    """Return this user's secret, made at its first use; None where no place for it is the user's alone."""
    try:
        place = _state_folder() / "key"
        if not place.exists():
            _make_secret(place)
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            secret = file.read(_SECRET_BYTES + 1)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    is_own = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return secret if is_own and len(secret) == _SECRET_BYTES else None


def _state_folder() -> Path:
    named = os.environ.get("XDG_STATE_HOME", "")
    home = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    return home / "visllama"


def _make_secret(place: Path) -> None:
    """Write a secret whole, readable by this user alone; of several processes that do, the first one's stands."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        with suppress(FileExistsError):
            os.link(temporary, place)
    finally:
        os.unlink(temporary)
