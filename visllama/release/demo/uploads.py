"""Check that a client names no other files than those in the folder of uploads."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

_FILE = "/gradio_api/file="
_MAX_NODES = 10_000
"""The largest number of values in one event of the page."""
_IS_NO_UPLOAD = "a file is named by the upload that it was, and not by a path or an address"


def is_own_file(path: str, uploads: str) -> bool:
    """Return whether a path is absolute and leads into the folder of uploads, after `..` and links are resolved.

    The file need not exist.

    Args:
        path: The path, which comes from a client.
        uploads: The folder of uploads.
    """
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        return False
    folder = Path(uploads).resolve()
    return Path(path).resolve().is_relative_to(folder)


def find_foreign_file(event: object, uploads: str, host: str) -> str | None:
    """Return a message on the first wrong file that an event of the page names; None if all its files are uploads.

    A file is wrong if its path or web address is not that of an upload, or if the upload is no longer there. An event
    of more than 10 000 values is refused as well.

    Args:
        event: The event's JSON, as gradio's page sends it; files may be named at any depth.
        uploads: The folder of uploads.
        host: The name and port that the client uses for this server, its Host header.
    """
    # A list, and no recursion: a client may nest values as deeply as it likes.
    waiting: list[object] = [event]
    num_values = 0
    while waiting:
        value = waiting.pop()
        num_values += 1
        if num_values > _MAX_NODES:
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
    """Return what is wrong with an object that may describe a file, as gradio's `FileData` does; None if nothing is."""
    path = value.get("path")
    if path is not None:
        if not isinstance(path, str) or not is_own_file(path, uploads):
            return _IS_NO_UPLOAD
        if not Path(path).is_file():
            return "the picture is no longer there: choose it again"

    # gradio itself may fetch an address, whatever the path beside it is.
    url = value.get("url")
    if url is not None and not _is_own_address(url, uploads, host):
        return _IS_NO_UPLOAD
    return None


def _is_own_address(url: object, uploads: str, host: str) -> bool:
    """Return whether a web address is the one under which this server has an upload."""
    if not isinstance(url, str):
        return False

    for start in (f"http://{host}{_FILE}", _FILE):
        if url.startswith(start):
            return is_own_file(unquote(url.removeprefix(start)), uploads)
    return False
