"""Tables of what was seen: a sample's tokens, each source's counts, a histogram of lengths."""

from __future__ import annotations

import math
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
"""The middle of a segment with more tokens is folded."""
_MOST_BINS = 12
_BAR_CHARACTERS = 40


class SourceCounts(NamedTuple):
    """What was seen of a source.

    Attributes:
        name: The source's name; "all" for the sum of all sources.
        samples: The number of samples.
        tokens: The number of tokens, with image spans and without padding.
        targets: The number of supervised tokens.
        text_tokens: The number of text tokens before the cut, for each sample that could be read.
        cut: The number of samples whose text was cut.
        with_images: The number of samples with an image or more.
        masked: The number of samples from which nothing is learned, by the reason.
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
        """Return the counts of these samples, under this name."""
        # What could not be read is a plain Sample, of which no text is known.
        measured = [sample for sample in samples if isinstance(sample, MeasuredSample)]
        cut = [sample for sample in measured if sample.is_cut]
        with_images = [sample for sample in samples if BOI_ID in sample.input_ids]
        return cls(
            name=name,
            samples=len(samples),
            tokens=sum(len(sample.input_ids) for sample in samples),
            targets=sum(sample.num_targets for sample in samples),
            text_tokens=[sample.num_text_tokens for sample in measured],
            cut=len(cut),
            with_images=len(with_images),
            masked=Counter(sample.fault.reason for sample in samples if sample.fault),
        )

    def cells(self) -> tuple[str, ...]:
        """Return the counts as texts, one for each of `HEADERS`."""
        masked = ", ".join(f"{count} {reason}" for reason, count in self.masked.most_common())
        return (
            readable(self.name),
            f"{self.samples:,}",
            share(self.targets, self.tokens),
            _quantiles(self.text_tokens),
            share(self.cut, self.samples),
            share(self.with_images, self.samples),
            masked or "0",
        )


HEADERS = ("source", "samples", "supervised", "text tokens", "cut", "images", "masked")
"""The headers of the cells that `SourceCounts.cells` returns."""


def _quantiles(lengths: Sequence[int]) -> str:
    """Return the shortest length, the median, the 95% quantile and the longest length; "-" where there is none."""
    if not lengths:
        return "-"
    # By `inverted_cdf` each is the length of a sample, and no mean of two.
    quantiles = np.quantile(lengths, [0, 0.5, 0.95, 1], method="inverted_cdf")
    return "/".join(f"{length:,.0f}" for length in quantiles)


def share(part: int, whole: int) -> str:
    """Return a share as a percentage; "-" where the whole is 0."""
    return f"{part / whole:.1%}" if whole else "-"


def count_sources(samples: Sequence[Sample], names: Iterable[str]) -> list[SourceCounts]:
    """Return the counts of each source, followed by the counts of all samples where there are several sources."""
    counts = []
    # By the names of the configuration, so that a source from which nothing came stands in the table too.
    for name in names:
        of_source = [sample for sample in samples if sample.source == name]
        counts.append(SourceCounts.of(name, of_source))

    if len(counts) > 1:
        counts.append(SourceCounts.of("all", samples))
    return counts


def columns_note(most: int) -> str:
    """Return what the columns of `HEADERS` hold that their names do not say."""
    return (
        f"supervised: share of all tokens. text tokens: min/median/95%/max,\n"
        f"before the cut at stage.max_text_tokens={most}."
    )


def sources_table(counts: Sequence[SourceCounts]) -> Table:
    """Return the counts of each source as a table of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in HEADERS:
        is_text = header in ("source", "masked")
        table.add_column(header, justify="left" if is_text else "right", overflow="fold")

    for source in counts:
        # A source's name may hold square brackets, which rich would read as markup.
        cells = [escape(cell) for cell in source.cells()]
        table.add_row(*cells)
    return table


def step_line(number: int, step: SeenStep) -> str:
    """Return a line about the samples, the micro-batches and the padding of a step."""
    num_tokens = sum(len(sample.input_ids) for sample in step.samples)
    # Samples of a micro-batch are padded to its longest.
    padding = share(step.num_positions - num_tokens, step.num_positions)
    plural = "es" if step.num_micro_batches > 1 else ""
    return (
        f"Step {number}, on one rank: {len(step.samples):,} samples, {step.num_micro_batches} micro-batch{plural}, "
        f"{padding} padding"
    )


def tokens_table(tokens: Sequence[Token]) -> Table:
    """Return a table with a row for each token of a sample; the middle of a long segment is folded."""
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
    """A bar of a histogram.

    Attributes:
        label: The lengths that are counted, for example "12-15".
        count: The number of samples.
        is_cut: Whether these texts are longer than the cut.
    """

    label: str
    count: int
    is_cut: bool = False


def histogram(lengths: Sequence[int], most: int) -> list[Bin]:
    """Return a histogram of text lengths, in bins of one width; the last bin counts all that are longer than `most`.

    Args:
        lengths: The number of text tokens of each sample.
        most: The length at which texts are cut.
    """
    kept = [length for length in lengths if length <= most]
    bins = []
    if kept:
        # Bins of whole lengths: a bin may hold a single length, and the last one may be narrower.
        shortest = min(kept)
        longest = max(kept)
        width = math.ceil((longest - shortest + 1) / _MOST_BINS)
        for first in range(shortest, longest + 1, width):
            last = min(first + width - 1, longest)
            label = f"{first}" if first == last else f"{first}-{last}"
            inside = [length for length in kept if first <= length <= last]
            bins.append(Bin(label, len(inside)))

    num_cut = len(lengths) - len(kept)
    if num_cut:
        bins.append(Bin(f"over {most}", num_cut, is_cut=True))
    return bins


def bars(bins: Sequence[Bin]) -> str:
    """Return a histogram drawn as text; a sentence where there is nothing to draw."""
    if not bins:
        return "No sample could be read"

    highest = max(b.count for b in bins)
    label_width = max(len(b.label) for b in bins)
    lines = ["Text tokens of a sample"]
    for b in bins:
        # Rounded up, so that one sample among thousands still shows.
        bar = "█" * math.ceil(b.count * _BAR_CHARACTERS / highest)
        mark = " cut" if b.is_cut else ""
        lines.append(f"  {b.label:>{label_width}} {bar:{_BAR_CHARACTERS}} {b.count:,}{mark}")
    return "\n".join(lines)
