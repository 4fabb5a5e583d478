"""What a run's loader would give, looked at on its way: through the run's own order, makers and collator."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

from visllama.data.collate import Collator
from visllama.data.datamodule import TrainingData
from visllama.data.samples import Sample, SampleMaker
from visllama.text.tokens import image_span

_OF_IMAGES = frozenset(image_span(1))


@dataclass(frozen=True)
class MeasuredSample(Sample):
    """A Sample, and what its maker knows of its text.

    Attributes:
        num_text_tokens: Prompts and responses with their ends, before `max_text_tokens` cut them.
        is_cut: Whether it did.
        end_id: The token that ends its responses.
    """

    num_text_tokens: int = 0
    is_cut: bool = False
    end_id: int | None = None


class MeasuringMaker:
    """Make what another maker makes, and measure it.

    Args:
        maker: Of the run.
    """

    def __init__(self, maker: SampleMaker) -> None:
        self.maker, self.uncut = maker, copy(maker)
        self.uncut.max_text_tokens, self.uncut.transform = sys.maxsize, _no_pixels
        self.uncut.num_positions = None

    def __call__(self, record: Mapping, item: int = 0) -> MeasuredSample:
        sample = self.maker(record, item)
        count, most = self._count(sample), self.maker.max_text_tokens
        if count >= most - 1:  # a cut may leave one place empty: a response of one token and its end need two
            count = self._count(self.uncut(record, item))
        return MeasuredSample(**vars(sample), num_text_tokens=count, is_cut=count > most, end_id=self.maker.end_id)

    def _count(self, sample: Sample) -> int:
        has_bos = self.maker.tokenizer.bos_token_id is not None
        return sum(i not in _OF_IMAGES for i in sample.input_ids) - has_bos


def _no_pixels(image: object) -> None:
    """Stand in for the transform where only tokens are counted."""


class SeenStep(NamedTuple):
    """What is kept of a Step.

    Attributes:
        samples: In their order; of each source all but the first few without pixels.
        num_targets: As `Step` has it.
        num_micro_batches: On one rank.
        num_positions: Of all micro-batches, padding included.
    """

    samples: list[Sample]
    num_targets: int
    num_micro_batches: int
    num_positions: int


class SeeingCollator(Collator):
    """Make a run's Steps, and give the Samples that went into them.

    Args:
        collator: Of the run.
        num_shown: Of so many samples of each source the pixels are kept.
    """

    def __init__(self, collator: Collator, num_shown: int) -> None:
        super().__init__(collator.pad_token_id, collator.num_image_tokens, collator.size_px, collator.micro_batch_size)
        self.num_shown = num_shown

    def step(self, samples: Sequence[Sample]) -> SeenStep:
        made, kept, seen = super().step(samples), [], Counter()
        for sample in samples:
            seen[sample.source] += 1
            kept.append(sample if seen[sample.source] <= self.num_shown else replace(sample, pixel_values=[]))
        batches = made["micro_batches"]
        return SeenStep(kept, made["num_targets"], len(batches), sum(batch["input_ids"].numel() for batch in batches))


def see(data: TrainingData, num_samples: int, num_shown: int) -> list[SeenStep]:
    """Load a run's first steps, all of its ranks' together.

    Args:
        data: Of the run; it is of no use to train on afterwards.
        num_samples: At least so many are looked at, if the run has them, in whole steps.
        num_shown: Of so many samples of each source a step the pixels are kept.
    """
    data.makers = {name: MeasuringMaker(maker) for name, maker in data.makers.items()}
    data.collator = SeeingCollator(data.collator, num_shown)
    data.num_workers = 0  # Samples stay in this process; loading processes hand over Steps alone
    data.num_steps = min(data.num_steps, -(-num_samples // data.order.global_batch_size))
    return list(data.train_dataloader())
