"""Tables of what was seen: a sample's tokens, each source's counts, a histogram of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from visllama.data.samples import Sample
from visllama.inspect.reading import Token, folded, readable
from visllama.inspect.seen import MeasuredSample, SeenStep
from visllama.text.tokens import BOI_ID

_STYLES = {"prompt": "dim", "response": "green", "end": "green", "boi": "blue", "image": "blue", "eoi": "blue"}
_MOST_IN_A_ROW = 24
"""Of more tokens of one segment the middle is folded."""
_BINS, _BAR = 12, 40


class SourceCounts(NamedTuple):
    """What was seen of a source.

    Attributes:
        name: Of the source; "all" is the sum.
        samples: Looked at.
        tokens: With image spans, without padding.
        targets: Supervised tokens.
        text_tokens: Of each sample that could be read, before the cut.
        cut: Samples whose text was cut.
        with_images: Samples with an image or more.
        masked: Samples of which nothing is learned, by the reason.
    """

    name: str
    samples: int
    tokens: int
    targets: int
    text_tokens: list[int]
    cut: int
    with_images: int
    masked: Counter[str]

    @classmethod
    def of(cls, name: str, samples: Sequence[Sample]) -> SourceCounts:
        measured = [sample for sample in samples if isinstance(sample, MeasuredSample)]
        return cls(
            name,
            len(samples),
            sum(len(sample.input_ids) for sample in samples),
            sum(sample.num_targets for sample in samples),
            [sample.num_text_tokens for sample in measured],
            sum(sample.is_cut for sample in measured),
            sum(BOI_ID in sample.input_ids for sample in samples),
            Counter(sample.fault.reason for sample in samples if sample.fault),
        )

    def cells(self) -> tuple[str, ...]:
        """Write it as a row of `HEADERS`."""
        masked = ", ".join(f"{count} {reason}" for reason, count in self.masked.most_common())
        quantiles = np.quantile(self.text_tokens or [0], [0, 0.5, 0.95, 1], method="inverted_cdf")
        return (
            readable(self.name),
            f"{self.samples:,}",
            share(self.targets, self.tokens),
            "/".join(f"{q:,.0f}" for q in quantiles) if self.text_tokens else "-",
            share(self.cut, self.samples),
            share(self.with_images, self.samples),
            masked or "0",
        )


HEADERS = ("source", "samples", "supervised", "text tokens", "cut", "images", "masked")
"""Of `SourceCounts.cells`."""


def share(part: int, whole: int) -> str:
    """Write a share; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


def count_sources(samples: Sequence[Sample], names: Iterable[str]) -> list[SourceCounts]:
    """Count by source, and of several all together."""
    counts = [SourceCounts.of(name, [sample for sample in samples if sample.source == name]) for name in names]
    return [*counts, SourceCounts.of("all", samples)] if len(counts) > 1 else counts


def columns_note(most: int) -> str:
    """Return what the columns of `HEADERS` hold that their names do not say."""
    return (
        f"supervised: share of all tokens. text tokens: min/median/95%/max,\n"
        f"before the cut at stage.max_text_tokens={most}."
    )


def sources_table(counts: Sequence[SourceCounts]) -> Table:
    """Show each source's counts, in 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in HEADERS:
        table.add_column(header, justify="left" if header in ("source", "masked") else "right", overflow="fold")
    for row in counts:
        table.add_row(*map(escape, row.cells()))
    return table


def step_line(number: int, step: SeenStep) -> str:
    """Return what one step is made of."""
    tokens, batches = sum(len(sample.input_ids) for sample in step.samples), step.num_micro_batches
    padding = share(step.num_positions - tokens, step.num_positions)
    return (
        f"Step {number}, on one rank: {len(step.samples):,} samples, {batches} micro-batch{'es' * (batches > 1)}, "
        f"{padding} padding"
    )


def tokens_table(tokens: Sequence[Token]) -> Table:
    """Show a sample token by token, the middle of a long segment folded."""
    table = Table("token", "segment")
    table.add_column("label", justify="right")
    for token in folded(tokens, _MOST_IN_A_ROW):
        if isinstance(token, Token):
            label = "-" if token.label is None else str(token.label)
            table.add_row(escape(token.name), token.segment, label, style=_STYLES.get(token.segment))
        else:
            segment = token[0].segment
            table.add_row(f"... {len(token)} more", segment, "", style=_STYLES.get(segment))
    return table


class Bin(NamedTuple):
    """A bar of a histogram."""

    label: str
    count: int
    is_cut: bool = False


def histogram(lengths: Sequence[int], most: int) -> list[Bin]:
    """Count text lengths in bins of one width; all that are longer than `most` are the last one."""
    kept, bins = [length for length in lengths if length <= most], []
    if kept:
        low, high = min(kept), max(kept)
        width = -(-(high - low + 1) // _BINS)
        for first in range(low, high + 1, width):
            last = min(first + width - 1, high)
            label = f"{first}" if first == last else f"{first}-{last}"
            bins.append(Bin(label, sum(first <= length <= last for length in kept)))
    return bins + ([Bin(f"over {most}", len(lengths) - len(kept), True)] if len(kept) < len(lengths) else [])


def bars(bins: Sequence[Bin]) -> str:
    """Draw a histogram as text; of nothing, say so."""
    if not bins:
        return "No sample could be read"
    highest, wide = max(b.count for b in bins), max(len(b.label) for b in bins)
    lines = [
        f"  {b.label:>{wide}} {'█' * -(-b.count * _BAR // highest):{_BAR}} {b.count:,}{' cut' * b.is_cut}" for b in bins
    ]
    return "\n".join(["Text tokens of a sample", *lines])
