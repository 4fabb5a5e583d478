"""From Samples to batches: a Step's micro-batches of like length, and left-padded batches to generate from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from visllama.data.samples import Sample, masked_sample
from visllama.text.tokens import IGNORE_INDEX, PLACEHOLDER_ID


class Batch(TypedDict, total=False):
    """Tensors, named as the arguments of `VisLlama.forward`."""

    input_ids: Tensor
    pixel_values: Tensor
    attention_mask: Tensor
    labels: Tensor


class Step(TypedDict):
    """What one rank does in one optimizer step."""

    micro_batches: list[Batch]
    dummy: Batch
    """A micro-batch without targets, for a step in which another rank has more micro-batches than this one."""
    num_targets: int
    """Supervised tokens of all micro-batches."""
    num_samples: int
    num_tokens: int
    """Tokens of all samples, image spans included, and padding left out."""
    num_images: int
    """Images of all samples."""
    sources: list[list[str]]
    """Of each micro-batch's samples, in their order: which source each is of."""
    keys: list[str]
    """Of all samples, in their order."""
    faults: list[tuple[str, str, str] | None]
    """Of each sample: None, or its source, the reason and the detail why it is masked."""


def _pixels(samples: Sequence[Sample], num_image_tokens: int, size_px: int) -> Tensor:
    images = [image for sample in samples for image in sample.pixel_values]
    placeholders = sum(sample.input_ids.count(PLACEHOLDER_ID) for sample in samples)
    if placeholders != len(images) * num_image_tokens:
        raise ValueError(f"{placeholders} placeholders for {len(images)} images of {num_image_tokens} tokens each")
    # A batch without images gets one of weight zero, so that every trained part runs on every rank at every step.
    return torch.stack(images) if images else torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8)


class Collator:
    """Make batches.

    Args:
        pad_token_id: What stands on padding; never looked at, never a target.
        num_image_tokens: Vectors an image (K).
        size_px: Side of an image.
        micro_batch_size: Most samples a micro-batch.
    """

    def __init__(self, pad_token_id: int, num_image_tokens: int, size_px: int, micro_batch_size: int) -> None:
        self.pad_token_id, self.num_image_tokens, self.size_px = pad_token_id, num_image_tokens, size_px
        self.micro_batch_size = micro_batch_size

    def training_batch(self, samples: Sequence[Sample]) -> Batch:
        """Pad on the right. No mask is needed: a causal model never looks right, and padding is no target."""
        longest = max(len(sample.input_ids) for sample in samples)
        ids = [s.input_ids + [self.pad_token_id] * (longest - len(s.input_ids)) for s in samples]
        labels = [s.labels + [IGNORE_INDEX] * (longest - len(s.labels)) for s in samples]
        pixels = _pixels(samples, self.num_image_tokens, self.size_px)
        return Batch(input_ids=torch.tensor(ids), labels=torch.tensor(labels), pixel_values=pixels)

    def generation_batch(self, samples: Sequence[Sample]) -> Batch:
        """Pad on the left, so that all go on from the last position."""
        pixels = _pixels(samples, self.num_image_tokens, self.size_px)
        return Batch(**self.pad_left([sample.input_ids for sample in samples]), pixel_values=pixels)

    def pad_left(self, rows: Sequence[list[int]]) -> Batch:
        """Return the ids of rows that are to be continued, and their mask."""
        longest = max(map(len, rows))
        ids = [[self.pad_token_id] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return Batch(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))

    def stack_images(self, images: Sequence[Tensor]) -> Tensor:
        """Return images as one tensor `(N 3 H W)`; of none, one of zeros.

        A batch without images gets one of weight zero, so that every trained part runs on every rank at every step.
        """
        return torch.stack(list(images)) if images else torch.zeros(1, 3, self.size_px, self.size_px, dtype=torch.uint8)

    def step(self, samples: Sequence[Sample]) -> Step:
        """Deal a rank's samples of a step into micro-batches of like length; which samples are in it never changes."""
        by_length = sorted(samples, key=lambda sample: len(sample.input_ids))
        groups = [by_length[i : i + self.micro_batch_size] for i in range(0, len(by_length), self.micro_batch_size)]
        return Step(
            micro_batches=[self.training_batch(group) for group in groups],
            dummy=self.training_batch([masked_sample()]),
            num_targets=sum(sample.num_targets for sample in samples),
            num_samples=len(samples),
            num_tokens=sum(len(sample.input_ids) for sample in samples),
            num_images=sum(len(sample.pixel_values) for sample in samples),
            sources=[[sample.source for sample in group] for group in groups],
            keys=[sample.key for sample in samples],
            faults=[sample.fault and (sample.source, sample.fault.reason, sample.fault.detail) for sample in samples],
        )
