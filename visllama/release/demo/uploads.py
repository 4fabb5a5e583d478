"""Which files a client may name: those that lie in the folder of uploads, and no others."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

_FILE = "/gradio_api/file="
_MOST_NODES = 10_000
"""The largest number of values in one event of the page."""


def is_own_file(path: str, uploads: str) -> bool:
    """Return whether a path is absolute and lies in the folder of uploads, whatever `..` and links it goes through."""
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        return False
    folder = Path(uploads).resolve()
    return Path(path).resolve().is_relative_to(folder)


def find_foreign_file(event: object, uploads: str, host: str) -> str | None:
    """Return what is wrong with the files that an event of the page names; None where nothing is.

    Args:
        event: The event's JSON, as gradio's page sends it.
        uploads: The folder of uploads.
        host: What the client calls this server.
    """
    waiting: list[object] = [event]
    num_seen = 0
    while waiting:
        value = waiting.pop()
        num_seen += 1
        if num_seen > _MOST_NODES:
            return "more values than the page sends"
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            problem = _find_problem(value, uploads, host)
            if problem is not None:
                return problem
    return None


def _find_problem(value: dict, uploads: str, host: str) -> str | None:
    path, url = value.get("path"), value.get("url")
    if path is not None:
        if not isinstance(path, str) or not is_own_file(path, uploads):
            return "a file is named by the upload that it was, and not by a path or an address"
        if not Path(path).is_file():
            return "the picture is no longer there: choose it again"
    if url is not None and not _is_own_address(url, uploads, host):
        return "a file is named by the upload that it was, and not by a path or an address"
    return None


def _is_own_address(url: object, uploads: str, host: str) -> bool:
    if not isinstance(url, str):
        return False
    for start in (f"http://{host}{_FILE}", _FILE):
        if url.startswith(start):
            return is_own_file(unquote(url.removeprefix(start)), uploads)
    return False
