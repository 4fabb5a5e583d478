"""Text of others inside Markdown: it is shown as it stands, and neither links, formats nor ends anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from visllama.console import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>$&@^])")
_ADDRESS = re.compile(r"(https?|ftp|mailto|xmpp)(:)|(www)(\.)", re.IGNORECASE)
_PLACE = re.compile(r"""(?<![\w.:/$}*-])(?:file:/*/|~\w*/|(?:\.\./)+|/)([^,'"\[\]{}=]*)""")
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]*@")
_QUERY = re.compile(r"(\w+://[^\s?]*)\?\S*")
_MOST_CHARACTERS = 400


def escape(text: object) -> str:
    """Return text for a line or a table's cell of Markdown, cut after 400 characters.

    Control characters are written out, lines become one, and each sign that Markdown or HTML would read is escaped;
    addresses stay text.
    """
    words = printable(text).split()
    line = " ".join(words)
    if len(line) > _MOST_CHARACTERS:
        line = f"{line[:_MOST_CHARACTERS]}..."

    escaped = _SPECIAL.sub(r"\\\1", line)
    return _ADDRESS.sub(_broken_address, escaped)


def _broken_address(match: re.Match[str]) -> str:
    """Return the start of an address with a backslash inside, so that Markdown makes no link of it."""
    start = match[1] or match[3]
    separator = match[2] or match[4]
    return f"{start}\\{separator}"


def fenced(lines: Iterable[str], language: str = "") -> str:
    """Return lines as a block of code; no line of them can end it."""
    safe_lines = [printable(line).replace("\n", " ") for line in lines]

    # A block ends at a fence of at least its own length.
    longest = 0
    for line in safe_lines:
        for ticks in re.findall("`+", line):
            longest = max(longest, len(ticks))
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *safe_lines, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown.

    Args:
        header: The header of each column, as Markdown.
        rows: The cells of each row, as Markdown.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_places(text: str) -> str:
    """Return text in which no folder of this machine is named: `/home/me/photos/a.tar` becomes `PATH/a.tar`.

    Names, passwords and signatures are left out of addresses on the web.
    """
    text = _CREDENTIALS.sub(r"\1", text)
    text = _QUERY.sub(r"\1", text)
    return _PLACE.sub(_without_folder, text)


def _without_folder(match: re.Match[str]) -> str:
    """Return a path with its last part alone."""
    _, _, name = match[1].rstrip("/").rpartition("/")
    return f"PATH/{name}"
