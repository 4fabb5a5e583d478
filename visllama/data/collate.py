"""Build batches of Samples: a Step of micro-batches to train on, and left-padded batches to generate from.

A Step is what one rank (one training process) does in one optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from visllama.data.samples import Sample, masked_sample
from visllama.text.tokens import IGNORE_INDEX, PLACEHOLDER_ID


class Batch(TypedDict, total=False):
    """The tensors of one batch, named as the arguments of `VisLlama.forward`; not every batch has them all."""

    input_ids: Int[Tensor, "B T"]
    """Token ids, padded to one length; an image stands in them as one [boi] (begin of image), placeholder ids that the
    model replaces by the image's vectors, and one [eoi] (end of image)."""
    pixel_values: UInt8[Tensor, "N 3 H W"]
    """The images of all samples, in the order of the samples; one image of zeros where there is none."""
    attention_mask: Int[Tensor, "B T"]
    """1 at a token and 0 at padding; only in batches that are padded on the left."""
    labels: Int[Tensor, "B T"]
    """`input_ids` where a token is learned, `IGNORE_INDEX` elsewhere; not shifted. Only in batches to train on."""


class Step(TypedDict):
    """The work of one rank (one training process) in one optimizer step: its micro-batches, and counts over them."""

    micro_batches: list[Batch]
    """Batches that are run one after the other, and whose gradients are added up; the shortest samples come first."""
    dummy: Batch
    """A micro-batch without targets, for a step in which another rank has more micro-batches than this one."""
    num_targets: int
    """Number of tokens that are learned, in all micro-batches."""
    num_samples: int
    """Number of samples in all micro-batches, masked ones (records that could not be used) included."""
    num_tokens: int
    """Number of token positions of all samples: those of images are counted, padding is not."""
    num_images: int
    """Number of images of all samples."""
    sources: list[list[str]]
    """The names of the samples' sources, a list for each micro-batch, in the order of its samples."""
    keys: list[str]
    """The keys of all samples, in the order in which they were drawn."""
    faults: list[tuple[str, str, str] | None]
    """For each of `keys`, why that sample is masked: its source's name, reason and detail; None if it is not."""


class Collator:
    """Build batches of Samples.

    Args:
        pad_token_id: The token of padding positions. No other position looks at them, and they are never a target.
        num_image_tokens: The number of placeholder ids that each image has in `input_ids` (K).
        size_px: Height and width of an image, in pixels.
        micro_batch_size: The largest number of samples in a micro-batch.
    """

    def __init__(self, pad_token_id: int, num_image_tokens: int, size_px: int, micro_batch_size: int) -> None:
        self.pad_token_id = pad_token_id
        self.num_image_tokens = num_image_tokens
        self.size_px = size_px
        self.micro_batch_size = micro_batch_size

    def training_batch(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch to train on: ids padded on the right, labels and images.

        The batch has no attention mask: a causal model never looks to the right, and padding is no target.

        Args:
            samples: At least one Sample. Their order is kept.

        Raises:
            ValueError: If there is no Sample, or the placeholder ids are not `num_image_tokens` for each image.
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
        """Return a batch to generate from: ids padded on the left, their attention mask, and images; no labels.

        With padding on the left, the text of every sample ends at the last position, from which it is continued.

        Args:
            samples: At least one Sample. Their order is kept.

        Raises:
            ValueError: If there is no Sample, or the placeholder ids are not `num_image_tokens` for each image.
        """
        batch = self.pad_left([sample.input_ids for sample in samples])
        batch["pixel_values"] = self._pixels(samples)
        return batch

    def pad_left(self, rows: Sequence[list[int]]) -> Batch:
        """Return a batch of `input_ids`, padded on the left, and their `attention_mask`; no images and no labels.

        Args:
            rows: At least one list of token ids, each the start of a text that is to be continued.

        Raises:
            ValueError: If there is no list.
        """
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
        """Return images as one tensor, in their order; for no images, one image of zeros.

        The image of zeros makes the vision encoder run on every rank (training process) at every step; no placeholder
        id in a text stands for it.

        Args:
            images: Pixels from 0 to 255, all of one height and width.

        Raises:
            RuntimeError: If the images differ in size.
        """
        if not images:
            return torch.zeros(1, 3, self.size_px, self.size_px, dtype=torch.uint8)
        return torch.stack(list(images))

    def _pixels(self, samples: Sequence[Sample]) -> UInt8[Tensor, "N 3 H W"]:
        images = [image for sample in samples for image in sample.pixel_values]

        # The model fills placeholders with image vectors in order: a wrong number would shift all images behind it.
        num_placeholders = sum(sample.input_ids.count(PLACEHOLDER_ID) for sample in samples)
        if num_placeholders != len(images) * self.num_image_tokens:
            raise ValueError(
                f"{num_placeholders} placeholders for {len(images)} images of {self.num_image_tokens} tokens each"
            )

        return self.stack_images(images)

    def step(self, samples: Sequence[Sample]) -> Step:
        """Return a Step of samples, sorted by length and cut into micro-batches, so that they need little padding.

        Every sample is in exactly one micro-batch. `Step.keys` and `Step.faults` keep the order of `samples`.

        Args:
            samples: All Samples of one rank (training process) for one optimizer step; none makes a Step without
                micro-batches.

        Raises:
            ValueError: If the number of placeholder ids is not `num_image_tokens` for each image.
        """
        # Samples of like length stand together, so little is padded; a step's gradients are summed in any case.
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
