"""Where the marks of the page's charts stand, in percent of a chart's width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.ablations import ALL_FROZEN, ALONE, FROZEN, REMOVED, place_name
from visllama.inspect.connector.findings import cider, interval, signed
from visllama.inspect.connector.study import ConnectorStudy

_MARGIN = 1.04
"""The axis goes a little beyond the largest value."""


class Row(NamedTuple):
    """A row of a chart of CIDEr.

    Attributes:
        name: What was left out.
        text: The figure behind the row.
        title: The whole of it, which is shown when the row is pointed at.
        at: Where the score stands.
        low: Where the interval begins.
        width: How wide the interval is.
        is_sure: Whether the interval of the difference to the baseline leaves zero out.
    """

    name: str
    text: str
    title: str
    at: float
    low: float
    width: float
    is_sure: bool


class Panel(NamedTuple):
    """A chart of CIDEr: a heading, what it shows, and where the bars of its rows begin."""

    title: str
    note: str
    rows: list[Row]
    start: float


class LossChart:
    """What is lost under each ablation, as panels on one axis from 0.

    Args:
        study: What was found.

    Attributes:
        whole: Where the score of the whole stands.
        panels: The panels.
    """

    def __init__(self, study: ConnectorStudy) -> None:
        whole = study.ablations[0]
        highest = max(score.cider - score.difference + max(0.0, score.interval[1]) for score in study.ablations)
        self._scale = 100 / (_MARGIN * highest) if highest > 0 else 0.0
        self.whole = self._place(whole.cider)
        frozen = study.of_kind(ALL_FROZEN)[0].cider
        general = [score for score in study.ablations if not score.ablation.vectors]
        self.panels = [
            Panel(
                "The picture, and the markers",
                "CIDEr, and what it differs from the whole",
                [self._row(score, is_level=score is whole) for score in general],
                self.whole,
            ),
            Panel(
                "Each vector removed",
                "difference to the whole: is it needed?",
                [self._row(score) for score in study.of_kind(REMOVED)],
                self.whole,
            ),
            Panel(
                "Each vector at its mean",
                "difference to the whole: is what changes in it needed?",
                [self._row(score) for score in study.of_kind(FROZEN)],
                self.whole,
            ),
            Panel(
                "Each vector alone",
                f"CIDEr, all others at their means; with all at their means it is {cider(frozen)}: what does it add?",
                [self._row(score, is_level=True) for score in study.of_kind(ALONE)],
                self._place(frozen),
            ),
        ]

    def _place(self, value: float) -> float:
        return round(max(0.0, value) * self._scale, 2)

    def _row(self, score: AblationScore, is_level: bool = False) -> Row:
        vectors = score.ablation.vectors
        name = place_name(vectors) if vectors else score.ablation.name
        baseline = score.cider - score.difference
        low, high = (self._place(baseline + bound) for bound in score.interval)
        return Row(
            name=name,
            text=cider(score.cider) if is_level else signed(score.difference),
            title=f"{score.ablation.name}: CIDEr {cider(score.cider)}, {signed(score.difference)} against "
            f"{score.ablation.baseline.replace('_', ' ')} (95%: {interval(score)}); {score.changed:.0%} of the "
            "captions are not those of the whole",
            at=self._place(score.cider),
            low=low,
            width=round(high - low, 2),
            is_sure=score.is_sure,
        )


class Strip(NamedTuple):
    """A row of the chart of norms: a name, its figure, and where the marks stand; a marker has one mark alone."""

    name: str
    text: str
    marks: list[float]


def norm_strips(norms: Mapping[str, Any]) -> list[Strip]:
    """Return the rows of the chart of norms, as `vectors.norm_quantiles` gives them, on one axis from 0."""
    ranges = {"text embeddings": norms["text_embeddings"], "image vectors": norms["image_vectors"]}
    single = {"[boi]": norms["boi"], "[eoi]": norms["eoi"]}
    highest = max(*(value for values in ranges.values() for value in values), *single.values())
    scale = 100 / (_MARGIN * highest) if highest > 0 else 0.0
    strips = []
    for name, values in ranges.items():
        marks = [round(value * scale, 2) for value in values]
        strips.append(Strip(name, f"{values[len(values) // 2]:.2f}", marks))
    return strips + [Strip(name, f"{value:.2f}", [round(value * scale, 2)]) for name, value in single.items()]
