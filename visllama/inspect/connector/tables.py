"""Tables of a connector's results for the terminal, 80 columns wide, and the text that explains their columns."""

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
"""The largest number of rows of a table; where there are more, those are shown whose removal costs most."""
_SHOWN_WORDS = 2


def ablation_table(study: ConnectorStudy) -> Table:
    """Return a table of the ablations that concern no single vector: whole, other images, all frozen, no markers.

    Each row has the CIDEr, its difference to `whole` with an interval, and the share of captions that changed.
    """
    table = _table("CIDEr x100", "score", "difference", "95% interval", "other captions")

    whole = study.ablations[0]
    for score in study.ablations:
        if score.ablation.vectors:
            continue

        # The whole is not compared with itself.
        cells = ["", "", ""]
        if score is not whole:
            cells = [signed(score.difference), interval(score), f"{score.changed:.0%}"]
        table.add_row(score.ablation.name, cider(score.cider), *cells)
    return table


def loss_table(study: ConnectorStudy) -> Table:
    """Return a table of what each image vector, or group of vectors, is worth in CIDEr: a row for each.

    The columns are the change of CIDEr if the vector is removed, the change if it is held at its mean over the
    pictures, each with its interval, and the CIDEr if all other vectors are held at their means. A loss is negative.
    The table has at most 16 rows: those whose removal costs most CIDEr.
    """
    removed_scores = study.of_kind(REMOVED)
    frozen_scores = study.of_kind(FROZEN)
    alone = study.of_kind(ALONE)

    # The three kinds list the same vectors in the same order: one index is one row of all.
    table = _table("vector", "removed", "95% interval", "at its mean", "95% interval", "alone")

    for row in _shown(removed_scores):
        removed_score = removed_scores[row]
        frozen_score = frozen_scores[row]
        alone_score = alone[row]
        table.add_row(
            place_name(removed_score.ablation.vectors),
            signed(removed_score.difference),
            interval(removed_score),
            signed(frozen_score.difference),
            interval(frozen_score),
            cider(alone_score.cider),
        )
    return table


def vectors_table(study: ConnectorStudy) -> Table:
    """Return a table with a row for each vector: its norm, its most frequent best token, and the words that it names.

    The other columns are the share of the vector that changes with the picture, and how often its nearest tokens are
    words of the picture's own and of other pictures' references. The table has at most 16 rows: the first of the
    vectors that `loss_table` shows.
    """
    # The last three columns hold words of any length: cut to a width, so that a row stays one line of 80 columns.
    table = _table("vector", "norm", "varies", "own/other")
    for header, width in (("nearest", 13), ("unembedding", 15), ("names", 20)):
        table.add_column(header, overflow="ellipsis", no_wrap=True, width=width)

    removed_scores = study.of_kind(REMOVED)
    shown_places: set[int] = set()
    for row in _shown(removed_scores):
        shown_places.update(removed_scores[row].ablation.vectors)

    # A row of the other tables may stand for several vectors: these may be too many together.
    shown_vectors = [facts for facts in study.vectors if facts.vector in shown_places]
    for facts in shown_vectors[:MOST_ROWS]:
        words = facts.nearest.words
        nearest = _first(facts.nearest)
        unembedding = "" if facts.unembedding is None else _first(facts.unembedding)
        named_words = [f"{word.word} {word.right}/{word.times}" for word in words.named[:_SHOWN_WORDS]]
        cells = [
            str(facts.vector),
            f"{facts.norm:.1f}",
            f"{facts.varies:.0%}",
            f"{words.own:.0%}/{words.other:.0%}",
            escape(nearest),
            escape(unembedding),
            escape(", ".join(named_words)),
        ]
        table.add_row(*cells)
    return table


def notes(study: ConnectorStudy) -> str:
    """Return a text of several lines that explains the columns of `loss_table` and `vectors_table`."""
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
    """Return the indices of the (at most 16) scores with the largest loss, in ascending order."""
    # The most negative difference is the largest loss.
    rows = range(len(scores))
    ranked = sorted(rows, key=lambda row: scores[row].difference)
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
