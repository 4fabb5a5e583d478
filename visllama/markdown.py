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
    line = " ".join(printable(text).split())
    line = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
    return _ADDRESS.sub(lambda found: f"{found[1] or found[3]}\\{found[2] or found[4]}", _SPECIAL.sub(r"\\\1", line))


def fenced(lines: Iterable[str], language: str = "") -> str:
    """Return lines as a block of code; no line of them can end it."""
    lines = [printable(line).replace("\n", " ") for line in lines]
    longest = max((len(ticks) for line in lines for ticks in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown; its cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_places(text: str) -> str:
    """Return text in which no folder of this machine is named: of `/home/me/photos/a.tar`, `PATH/a.tar` stays.

    Of an address on the web, names, passwords and signatures are left out.
    """
    text = _QUERY.sub(r"\1", _CREDENTIALS.sub(r"\1", text))
    return _PLACE.sub(lambda found: f"PATH/{found[1].rstrip('/').rpartition('/')[2]}", text)
