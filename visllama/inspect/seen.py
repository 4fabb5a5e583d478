"""Load the first training steps of a run with its own order, makers and collator, and keep the Samples in them.

A Sample is one training example; a Step is what the collator makes of the Samples of one optimizer step.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from visllama.data.collate import Collator
from visllama.data.datamodule import TrainingData
from visllama.data.samples import Sample, SampleMaker
from visllama.text.tokens import image_span

# The placeholder and both markers: a span of one image token has all of them.
_OF_IMAGES = frozenset(image_span(1))


@dataclass(frozen=True)
class MeasuredSample(Sample):
    """A Sample with the length that its text had before it was cut.

    Attributes:
        num_text_tokens: The number of tokens of prompts and responses, with their end tokens, before the cut at
            `stage.max_text_tokens`. The BOS and image spans do not count.
        is_cut: Whether the text was cut.
        end_id: The id of the token that ends the Sample's responses; None if there is none.
    """

    num_text_tokens: int = 0
    is_cut: bool = False
    end_id: int | None = None


class MeasuringMaker:
    """Make the same Samples as a run's maker, with the length of their text.

    A maker is called with a record of the data, and returns a Sample: one training example.

    Args:
        maker: The run's maker.

    Attributes:
        maker: The run's maker.
        uncut: A copy of the maker that cuts no text and decodes no image.
    """

    def __init__(self, maker: SampleMaker) -> None:
        self.maker = maker

        # A shallow copy shares the tokenizer, and the changes below stay with it.
        self.uncut = copy(maker)
        self.uncut.max_text_tokens = sys.maxsize
        self.uncut.num_positions = None
        self.uncut.transform = _no_pixels  # pyrefly: ignore[bad-assignment]  what it makes is counted, not trained on

    def __call__(self, record: Mapping, item: int = 0) -> MeasuredSample:
        """Make a Sample of one of a record's captions or questions, or of its conversation, and measure its text.

        Args:
            record: The record.
            item: The index of the caption or question in the record, counted from 0.

        Raises:
            BadRecord: If an image cannot be decoded, or the Sample is longer than the language model's positions.
        """
        sample = self.maker(record, item)
        most = self.maker.max_text_tokens
        count = self._count(sample)

        # A cut may leave one place empty: a response of one token and its end need two.
        if count >= most - 1:
            count = self._count(self.uncut(record, item))

        return MeasuredSample(
            **vars(sample),
            num_text_tokens=count,
            is_cut=count > most,
            end_id=self.maker.end_id,
        )

    def _count(self, sample: Sample) -> int:
        """Return the number of tokens that are neither of an image nor the BOS."""
        count = len([token_id for token_id in sample.input_ids if token_id not in _OF_IMAGES])
        if self.maker.tokenizer.bos_token_id is not None:
            count -= 1
        return count


def _no_pixels(image: object) -> None:
    """Stand in for the transform where only tokens are counted: decoding would take most of the time."""


class SeenStep(NamedTuple):
    """The Samples of one training step, and the sizes of the batches that the collator made of them.

    Attributes:
        samples: The Samples in their order. Only the first few of each source keep their pixels; `pixel_values` of the
            others is empty.
        num_targets: The number of supervised tokens: those that the model learns to write.
        num_micro_batches: The number of micro-batches that one rank computes one after another.
        num_positions: The number of token positions in all micro-batches, padding included.
    """

    samples: list[Sample]
    num_targets: int
    num_micro_batches: int
    num_positions: int


class SeeingCollator(Collator):
    """Collate Samples as a run's collator does, and return the Samples and sizes of a step in place of its batches.

    Args:
        collator: The run's collator, whose settings are copied.
        num_shown: The number of Samples of each source in a step whose pixels are kept.

    Attributes:
        num_shown: The number of Samples of each source in a step whose pixels are kept.
    """

    def __init__(self, collator: Collator, num_shown: int) -> None:
        super().__init__(collator.pad_token_id, collator.num_image_tokens, collator.size_px, collator.micro_batch_size)
        self.num_shown = num_shown

    def step(  # pyrefly: ignore[bad-override]  `see` alone uses it, in a loader that hands its results through
        self, samples: Sequence[Sample]
    ) -> SeenStep:
        """Return the Samples of one step, with the sizes of the micro-batches that they make.

        Only the first `num_shown` Samples of each source keep their pixels in the result.

        Args:
            samples: The Samples of the step. They are not changed.
        """
        step = super().step(samples)

        # The pixels of all samples of a large step might not fit into memory.
        kept = []
        num_of_source: Counter[str] = Counter()
        for sample in samples:
            num_of_source[sample.source] += 1
            is_shown = num_of_source[sample.source] <= self.num_shown
            kept.append(sample if is_shown else replace(sample, pixel_values=[]))

        batches = step["micro_batches"]
        return SeenStep(
            samples=kept,
            num_targets=step["num_targets"],
            num_micro_batches=len(batches),
            num_positions=sum(batch["input_ids"].numel() for batch in batches),
        )


def see(data: TrainingData, num_samples: int, num_shown: int) -> list[SeenStep]:
    """Load the first training steps of a run in this process, and return a `SeenStep` for each, in order.

    Args:
        data: The run's data. Its makers, collator and numbers of steps and workers are replaced: do not train on it
            afterwards.
        num_samples: The least number of samples that are loaded, if the run has so many. It is rounded up to whole
            steps.
        num_shown: The number of samples of each source in a step whose pixels are kept.
    """
    makers = {name: MeasuringMaker(maker) for name, maker in data.makers.items()}
    data.makers = makers  # pyrefly: ignore[bad-assignment]  the loader does nothing but call them
    data.collator = SeeingCollator(data.collator, num_shown)
    # Samples stay in this process: loading processes would hand over Steps alone.
    data.num_workers = 0

    num_steps = math.ceil(num_samples / data.order.global_batch_size)
    data.num_steps = min(data.num_steps, num_steps)
    return cast("list[SeenStep]", list(data.train_dataloader()))
