"""What is found of a connector on the terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.ablations import ALONE, FROZEN, REMOVED, place_name
from visllama.inspect.connector.findings import cider, interval, signed
from visllama.inspect.connector.study import ConnectorStudy
from visllama.inspect.connector.vectors import TokenReading

MOST_ROWS = 16
"""Of more vectors those are shown whose removal costs most."""
_SHOWN_WORDS = 2


def ablation_table(study: ConnectorStudy) -> Table:
    """Show what is lost with the picture or the markers."""
    table = _table("CIDEr x100", "score", "difference", "95% interval", "other captions")
    for score in study.ablations:
        if not score.ablation.vectors:
            is_whole = score is study.ablations[0]
            difference = (
                ["", "", ""] if is_whole else [signed(score.difference), interval(score), f"{score.changed:.0%}"]
            )
            table.add_row(score.ablation.name, cider(score.cider), *difference)
    return table


def loss_table(study: ConnectorStudy) -> Table:
    """Show what is lost with each vector, removed or held at its mean, and what it is worth alone."""
    removed, frozen, alone = (study.of_kind(kind) for kind in (REMOVED, FROZEN, ALONE))
    table = _table("vector", "removed", "95% interval", "at its mean", "95% interval", "alone")
    for row in _shown(removed):
        cells = [signed(removed[row].difference), interval(removed[row])]
        cells += [signed(frozen[row].difference), interval(frozen[row]), cider(alone[row].cider)]
        table.add_row(place_name(removed[row].ablation.vectors), *cells)
    return table


def vectors_table(study: ConnectorStudy) -> Table:
    """Show what each vector is like, the token that it is read by most often, and the words that it names."""
    table = _table("vector", "norm", "varies", "own/other")
    for header, width in (("nearest", 13), ("unembedding", 15), ("names", 20)):
        table.add_column(header, overflow="ellipsis", no_wrap=True, width=width)
    removed = study.of_kind(REMOVED)
    shown = {place for row in _shown(removed) for place in removed[row].ablation.vectors}
    for facts in [facts for facts in study.vectors if facts.vector in shown][:MOST_ROWS]:
        words = facts.nearest.words
        cells = [
            f"{facts.norm:.1f}",
            f"{facts.varies:.0%}",
            f"{words.own:.0%}/{words.other:.0%}",
            _first(facts.nearest),
        ]
        cells.append("" if facts.unembedding is None else _first(facts.unembedding))
        cells.append(", ".join(f"{word.word} {word.right}/{word.times}" for word in words.named[:_SHOWN_WORDS]))
        table.add_row(str(facts.vector), *map(escape, cells))
    return table


def notes(study: ConnectorStudy) -> str:
    """Return what the columns hold that their names do not say."""
    lines = [
        "removed: left out, those behind close up. at its mean: over the pictures.",
        "alone: CIDEr with all others at their means. varies: share of the vector that",
        "changes with the picture. own/other: pictures whose own (another picture's)",
        "references have a word among the five nearest tokens. nearest, unembedding: the",
        "token that is first in most pictures, and in how many. names: words among the",
        "five that are in the references more often than chance has it, right/times.",
    ]
    if len(study.of_kind(REMOVED)) > MOST_ROWS:
        lines.append(f"Shown: the {MOST_ROWS} whose removal costs most; inspect.json has all.")
    return "\n".join(lines)


def _shown(scores: Sequence[AblationScore]) -> list[int]:
    """Return which rows are shown, in their order."""
    ranked = sorted(range(len(scores)), key=lambda row: scores[row].difference)
    return sorted(ranked[:MOST_ROWS])


def _first(reading: TokenReading) -> str:
    token, share = reading.tokens[0]
    return f"{token} {share:.0%}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(first, min_width=len(first))
    for header in others:
        table.add_column(header, justify="right", no_wrap=True, min_width=len(header))
    return table
