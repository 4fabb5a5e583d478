"""Compute where the marks of the charts on `inspect_connector.html` stand, in percent of a chart's width."""

from __future__ import annotations

from typing import NamedTuple

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.ablations import ALL_FROZEN, ALONE, FROZEN, REMOVED, place_name
from visllama.inspect.connector.findings import cider, interval, signed
from visllama.inspect.connector.study import ConnectorStudy
from visllama.inspect.connector.vectors import Norms

_MARGIN = 1.04
"""The axis goes a little beyond the largest value."""


class Row(NamedTuple):
    """A row of a chart of CIDEr: the score of one ablation. Places and widths are in percent of the chart's width.

    Attributes:
        name: The numbers of the ablation's vectors, or the ablation's name if it is of no single vector.
        text: The figure at the end of the row: the CIDEr, or its difference to the baseline, x100.
        title: A sentence with all figures, which is shown when the row is pointed at.
        at: The place of the ablation's CIDEr.
        low: The place at which the 95% interval begins.
        width: The width of the interval.
        is_sure: Whether the interval of the difference to the baseline lies wholly above or wholly below zero.
    """

    name: str
    text: str
    title: str
    at: float
    low: float
    width: float
    is_sure: bool


class Panel(NamedTuple):
    """A chart of CIDEr.

    Attributes:
        title: The heading.
        note: A line below the heading, which explains what the rows show.
        rows: The rows, from top to bottom.
        start: The place at which the bars of the rows begin: the CIDEr that they are compared with, in percent.
    """

    title: str
    note: str
    rows: list[Row]
    start: float


class LossChart:
    """The chart of the CIDEr under each ablation: four panels that share one axis, which begins at 0.

    Args:
        study: The results of inspecting the connector.

    Attributes:
        whole: The place of the CIDEr when nothing is left out, in percent of the chart's width.
        panels: The panels: general ablations, then each vector removed, at its mean, and alone.
    """

    def __init__(self, study: ConnectorStudy) -> None:
        whole = study.ablations[0]

        # The interval is of the difference, so it stands on the baseline.
        ends = []
        for score in study.ablations:
            _, high = score.interval
            ends.append(_baseline(score) + max(0.0, high))
        highest = max(ends)
        self._scale = 100 / (_MARGIN * highest) if highest > 0 else 0.0
        self.whole = self._place(whole.cider)

        # A vector alone is compared with all at their means: its bar begins there.
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
        """Return the place of a value on the axis, in percent."""
        # The lower end of an interval can lie below zero, where the axis begins.
        return round(max(0.0, value) * self._scale, 2)

    def _row(self, score: AblationScore, is_level: bool = False) -> Row:
        """Return the row of an ablation.

        Args:
            score: The ablation's score.
            is_level: Whether the row's figure is the score itself; otherwise it is the difference to the baseline.
        """
        vectors = score.ablation.vectors
        low_bound, high_bound = score.interval
        low = self._place(_baseline(score) + low_bound)
        high = self._place(_baseline(score) + high_bound)

        baseline = score.ablation.baseline.replace("_", " ")
        title = (
            f"{score.ablation.name}: CIDEr {cider(score.cider)}, {signed(score.difference)} against {baseline} "
            f"(95%: {interval(score)}); {score.changed:.0%} of the captions are not those of the whole"
        )
        return Row(
            name=place_name(vectors) if vectors else score.ablation.name,
            text=cider(score.cider) if is_level else signed(score.difference),
            title=title,
            at=self._place(score.cider),
            low=low,
            width=round(high - low, 2),
            is_sure=score.is_sure,
        )


def _baseline(score: AblationScore) -> float:
    """Return the CIDEr that an ablation is compared with."""
    return score.cider - score.difference


class Strip(NamedTuple):
    """A row of the chart of norms.

    Attributes:
        name: What the norms are of: "text embeddings", "image vectors", "[boi]" or "[eoi]".
        text: The median of the norms with two decimals; for a marker its one norm.
        marks: The places of the quantiles, or of the one norm, in percent of the chart's width.
    """

    name: str
    text: str
    marks: list[float]


def norm_strips(norms: Norms) -> list[Strip]:
    """Return the four rows of the chart of norms, which share one axis that begins at 0.

    Args:
        norms: The norms, as `norm_quantiles` returns them.
    """
    norms_by_name = {
        "text embeddings": norms["text_embeddings"],
        "image vectors": norms["image_vectors"],
        "[boi]": [norms["boi"]],
        "[eoi]": [norms["eoi"]],
    }
    # One axis for all, because their lengths are to be compared.
    highest = max(max(values) for values in norms_by_name.values())
    scale = 100 / (_MARGIN * highest) if highest > 0 else 0.0

    strips = []
    for name, values in norms_by_name.items():
        # Quantiles come in ascending order, so the one in the middle is the median.
        median = values[len(values) // 2]
        marks = [round(value * scale, 2) for value in values]
        strips.append(Strip(name, f"{median:.2f}", marks))
    return strips
