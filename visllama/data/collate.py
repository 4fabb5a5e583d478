"""From Samples to batches: a Step's micro-batches of like length, and left-padded batches to generate from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from visllama.data.samples import Sample, masked_sample
from visllama.text.tokens import IGNORE_INDEX, PLACEHOLDER_ID


class Batch(TypedDict, total=False):
    """Tensors, named as the arguments of `VisLlama.forward`."""

    input_ids: Int[Tensor, "B T"]
    pixel_values: UInt8[Tensor, "N 3 H W"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]


class Step(TypedDict):
    """What one rank does in one optimizer step."""

    micro_batches: list[Batch]
    """Batches that are run one after the other, and whose gradients are added up."""
    dummy: Batch
    """A micro-batch without targets, for a step in which another rank has more micro-batches than this one."""
    num_targets: int
    """Supervised tokens of all micro-batches."""
    num_samples: int
    """Samples of all micro-batches, masked ones included."""
    num_tokens: int
    """Tokens of all samples, image spans included, and padding left out."""
    num_images: int
    """Images of all samples."""
    sources: list[list[str]]
    """The names of the samples' sources, a list for each micro-batch, in the order of its samples."""
    keys: list[str]
    """The keys of all samples, in the order in which they were drawn."""
    faults: list[tuple[str, str, str] | None]
    """For each key, why its sample is masked: its source, the reason and the detail; None where it is not masked."""


class Collator:
    """Build batches of Samples.

    Args:
        pad_token_id: The token of padding positions. No other position looks at them, and they are never a target.
        num_image_tokens: Vectors an image (K).
        size_px: Height and width of an image.
        micro_batch_size: Most samples in a micro-batch.
    """

    def __init__(self, pad_token_id: int, num_image_tokens: int, size_px: int, micro_batch_size: int) -> None:
        self.pad_token_id = pad_token_id
        self.num_image_tokens = num_image_tokens
        self.size_px = size_px
        self.micro_batch_size = micro_batch_size

    def training_batch(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch to train on, padded on the right.

        It needs no mask: a causal model never looks to the right, and padding is no target.

        Raises:
            ValueError: If the samples' placeholders do not fit the number of their images.
        """
        longest = max(len(sample.input_ids) for sample in samples)
        ids = []
        labels = []
        for sample in samples:
            num_padding = longest - len(sample.input_ids)
            ids.append(sample.input_ids + [self.pad_token_id] * num_padding)
            labels.append(sample.labels + [IGNORE_INDEX] * num_padding)

        return Batch(
            input_ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            pixel_values=self._pixels(samples),
        )

    def generation_batch(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch to generate from, padded on the left, so that all rows go on from the last position.

        Raises:
            ValueError: If the samples' placeholders do not fit the number of their images.
        """
        batch = self.pad_left([sample.input_ids for sample in samples])
        batch["pixel_values"] = self._pixels(samples)
        return batch

    def pad_left(self, rows: Sequence[list[int]]) -> Batch:
        """Return the ids of rows that are to be continued, padded on the left, and their mask."""
        longest = max(map(len, rows))
        ids = []
        mask = []
        for row in rows:
            num_padding = longest - len(row)
            # Unlike padding on the right, this one stands before what is read: the mask hides it.
            ids.append([self.pad_token_id] * num_padding + row)
            mask.append([0] * num_padding + [1] * len(row))

        return Batch(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))

    def stack_images(self, images: Sequence[UInt8[Tensor, "3 H W"]]) -> UInt8[Tensor, "N 3 H W"]:
        """Return images as one tensor; where there is none, one image of zeros.

        A batch without images gets one of weight zero, so that every trained part runs on every rank at every step.
        """
        if not images:
            return torch.zeros(1, 3, self.size_px, self.size_px, dtype=torch.uint8)
        return torch.stack(list(images))

    def _pixels(self, samples: Sequence[Sample]) -> UInt8[Tensor, "N 3 H W"]:
        images = [image for sample in samples for image in sample.pixel_values]
        num_placeholders = sum(sample.input_ids.count(PLACEHOLDER_ID) for sample in samples)
        if num_placeholders != len(images) * self.num_image_tokens:
            raise ValueError(
                f"{num_placeholders} placeholders for {len(images)} images of {self.num_image_tokens} tokens each"
            )
        return self.stack_images(images)

    def step(self, samples: Sequence[Sample]) -> Step:
        """Return a Step of a rank's samples, dealt into micro-batches of like length, which need little padding.

        The length decides only which micro-batch a sample is in: the Step holds the same samples, whatever they are.
        """
        by_length = sorted(samples, key=lambda sample: len(sample.input_ids))
        starts = range(0, len(by_length), self.micro_batch_size)
        groups = [by_length[start : start + self.micro_batch_size] for start in starts]

        return Step(
            micro_batches=[self.training_batch(group) for group in groups],
            dummy=self.training_batch([masked_sample()]),
            num_targets=sum(sample.num_targets for sample in samples),
            num_samples=len(samples),
            num_tokens=sum(len(sample.input_ids) for sample in samples),
            num_images=sum(len(sample.pixel_values) for sample in samples),
            sources=[[sample.source for sample in group] for group in groups],
            keys=[sample.key for sample in samples],
            faults=[_fault(sample) for sample in samples],
        )


def _fault(sample: Sample) -> tuple[str, str, str] | None:
    # A tuple and not the exception itself: a Step is handed from one process to another.
    if sample.fault is None:
        return None
    return sample.source, sample.fault.reason, sample.fault.detail
