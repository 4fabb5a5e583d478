"""Make the tables of an inspection of batches: a sample's tokens, the counts of each source, a histogram of lengths."""

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
    """The counts of the samples of one source.

    Attributes:
        name: The source's name; "all" for the sum of all sources.
        samples: The number of samples.
        tokens: The number of tokens of all samples, with image spans and without padding.
        targets: The number of supervised tokens: those that the model learns to write.
        text_tokens: For each sample that could be read, the number of its text tokens before the cut at
            `stage.max_text_tokens`.
        cut: The number of samples whose text was cut.
        with_images: The number of samples with at least one image.
        masked: The number of samples from which nothing is learned, by the reason (one of `errors.REASONS`).
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
        """Count these samples, and return the counts under this name.

        Args:
            name: The name of the source, or "all".
            samples: The samples; those of any source are counted.
        """
        tokens = 0
        targets = 0
        with_images = 0
        masked: Counter[str] = Counter()
        text_tokens = []
        cut = 0
        for sample in samples:
            tokens += len(sample.input_ids)
            targets += sample.num_targets
            if BOI_ID in sample.input_ids:
                with_images += 1
            if sample.fault:
                masked[sample.fault.reason] += 1
            # What could not be read is a plain Sample, of which no text is known.
            if isinstance(sample, MeasuredSample):
                text_tokens.append(sample.num_text_tokens)
                if sample.is_cut:
                    cut += 1

        return cls(
            name=name,
            samples=len(samples),
            tokens=tokens,
            targets=targets,
            text_tokens=text_tokens,
            cut=cut,
            with_images=with_images,
            masked=masked,
        )

    def cells(self) -> tuple[str, ...]:
        """Return the counts as texts for a row of a table, one for each of `HEADERS` in that order."""
        counts_of_reasons = [f"{count} {reason}" for reason, count in self.masked.most_common()]
        masked = ", ".join(counts_of_reasons) or "0"
        supervised = share(self.targets, self.tokens)
        text_tokens = _quantiles(self.text_tokens)
        cut = share(self.cut, self.samples)
        images = share(self.with_images, self.samples)
        return readable(self.name), f"{self.samples:,}", supervised, text_tokens, cut, images, masked


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
    """Return `part / whole` as a percentage with one decimal, for example "12.5%"; "-" where the whole is 0."""
    return f"{part / whole:.1%}" if whole else "-"


def count_sources(samples: Sequence[Sample], names: Iterable[str]) -> list[SourceCounts]:
    """Count the samples of each source; where there are several sources, counts of all samples follow, named "all".

    Args:
        samples: The samples of all sources.
        names: The names of the sources, in the order of the result. A source without samples has counts of 0.
    """
    counts = []
    # By the names of the configuration, so that a source from which nothing came stands in the table too.
    for name in names:
        of_source = [sample for sample in samples if sample.source == name]
        counts.append(SourceCounts.of(name, of_source))

    if len(counts) > 1:
        counts.append(SourceCounts.of("all", samples))
    return counts


def columns_note(most: int) -> str:
    """Return a text of two lines that explains the columns "supervised" and "text tokens" of `sources_table`.

    Args:
        most: The value of `stage.max_text_tokens`, which the text names.
    """
    return (
        f"supervised: share of all tokens. text tokens: min/median/95%/max,\n"
        f"before the cut at stage.max_text_tokens={most}."
    )


def sources_table(counts: Sequence[SourceCounts]) -> Table:
    """Return a table for the terminal with a row of counts for each source, and `HEADERS` above."""
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
    """Return a line of text with the numbers of samples and micro-batches of a step, and its percentage of padding.

    The percentage is of all token positions in the step's micro-batches.

    Args:
        number: The number of the step, counted from 1, which the line names.
        step: The training step.
    """
    # Samples of a micro-batch are padded to its longest.
    num_tokens = sum(len(sample.input_ids) for sample in step.samples)
    num_padding = step.num_positions - num_tokens
    padding = share(num_padding, step.num_positions)

    num_samples = len(step.samples)
    num_batches = step.num_micro_batches
    plural = "es" if num_batches > 1 else ""
    return f"Step {number}, on one rank: {num_samples:,} samples, {num_batches} micro-batch{plural}, {padding} padding"


def tokens_table(tokens: Sequence[Token]) -> Table:
    """Return a table for the terminal with a row for each token of a sample: its text, segment and label.

    The label is "-" for a token that is not learned. Of more than 24 neighbouring tokens of one segment, those in the
    middle share one row, which holds their number.
    """
    table = Table("token", "segment")
    table.add_column("label", justify="right")

    for token in folded(tokens, _MOST_IN_A_ROW):
        if isinstance(token, Token):
            name = escape(token.name)
            segment = token.segment
            label = "-" if token.label is None else str(token.label)
        else:
            name = f"... {len(token)} more"
            segment = token[0].segment
            label = ""
        table.add_row(name, segment, label, style=_STYLES.get(segment))
    return table


class Bin(NamedTuple):
    """A bar of a histogram of text lengths.

    Attributes:
        label: The lengths that are counted, in tokens, for example "12-15" or "over 512".
        count: The number of samples with such a length.
        is_cut: Whether these texts are longer than `stage.max_text_tokens`, and so were cut.
    """

    label: str
    count: int
    is_cut: bool = False


def histogram(lengths: Sequence[int], most: int) -> list[Bin]:
    """Return a histogram of text lengths; each length is counted in exactly one bin.

    Lengths up to `most` are counted in up to 12 bins of one width, from the shortest to the longest of them. If there
    are longer texts, one more bin at the end counts all of these. Without any length the histogram is empty.

    Args:
        lengths: The number of text tokens of each sample, before the cut.
        most: The length at which texts are cut: the value of `stage.max_text_tokens`.
    """
    uncut_lengths = [length for length in lengths if length <= most]
    bins = _bins_of(uncut_lengths) if uncut_lengths else []

    num_cut = len(lengths) - len(uncut_lengths)
    if num_cut:
        bins.append(Bin(f"over {most}", num_cut, is_cut=True))
    return bins


def _bins_of(lengths: Sequence[int]) -> list[Bin]:
    """Return up to 12 bins of whole lengths, at least one; a bin may hold one length, the last may be narrower."""
    shortest = min(lengths)
    longest = max(lengths)
    num_lengths = longest - shortest + 1
    width = math.ceil(num_lengths / _MOST_BINS)

    bins = []
    for first in range(shortest, longest + 1, width):
        last = min(first + width - 1, longest)
        label = f"{first}" if first == last else f"{first}-{last}"
        inside = [length for length in lengths if first <= length <= last]
        bins.append(Bin(label, len(inside)))
    return bins


def bars(bins: Sequence[Bin]) -> str:
    """Return a histogram drawn as text for the terminal: a heading, then one line with a bar for each bin.

    Without any bin, the text is "No sample could be read".
    """
    if not bins:
        return "No sample could be read"

    highest = max(b.count for b in bins)
    label_width = max(len(b.label) for b in bins)

    lines = ["Text tokens of a sample"]
    for b in bins:
        # Rounded up, so that one sample among thousands still shows.
        num_characters = math.ceil(b.count * _BAR_CHARACTERS / highest)
        bar = "█" * num_characters
        mark = " cut" if b.is_cut else ""

        label = f"{b.label:>{label_width}}"
        padded_bar = f"{bar:{_BAR_CHARACTERS}}"
        lines.append(f"  {label} {padded_bar} {b.count:,}{mark}")
    return "\n".join(lines)
