"""Write Markdown that holds text of others: it is shown as it stands, and cannot link, format or end anything."""

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
    """Return a value as one line of Markdown that shows it as plain text, for a line or a table's cell.

    Each sign that Markdown or HTML would read gets a backslash before it, addresses do not become links, control
    characters become escapes, and line breaks and repeated spaces become one space. A text of more than 400 characters
    is cut there, with "..." behind it.
    """
    words = printable(text).split()
    line = " ".join(words)
    # Cut before it is escaped: a cut behind a backslash would escape what follows the text.
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
    """Return lines as a block of code in Markdown, which no text inside can end.

    Args:
        lines: The lines of the block, as plain text. A line break inside a line becomes a space.
        language: The name of the language behind the opening fence, for example "python"; "" for none.
    """
    safe_lines = [printable(line).replace("\n", " ") for line in lines]

    # A block ends at a fence of at least its own length.
    longest = 0
    for line in safe_lines:
        for ticks in re.findall("`+", line):
            longest = max(longest, len(ticks))
    fence = "`" * max(3, longest + 1)

    opening = f"{fence}{language}"
    return "\n".join([opening, *safe_lines, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, without a line break at its end.

    Args:
        header: The header of each column.
        rows: The cells of each row, one for each column. Headers and cells are written as they stand: give text of
            others through `escape`.
    """
    rule = ["---"] * len(header)
    lines = []
    for cells in (header, rule, *rows):
        joined = " | ".join(cells)
        lines.append(f"| {joined} |")
    return "\n".join(lines)


def without_places(text: str) -> str:
    """Return text without the folders of its paths: `/home/me/photos/a.tar` becomes `PATH/a.tar`.

    Absolute paths and those that begin with `~` or `../` are shortened. Of addresses on the web, user names, passwords
    and the query (all from `?` on) are left out.
    """
    text = _CREDENTIALS.sub(r"\1", text)
    text = _QUERY.sub(r"\1", text)
    return _PLACE.sub(_without_folder, text)


def _without_folder(match: re.Match[str]) -> str:
    """Return a path with its last part alone."""
    path = match[1].rstrip("/")
    _, _, name = path.rpartition("/")
    return f"PATH/{name}"
