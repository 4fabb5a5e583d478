"""The pictures that a connector is looked at on: some of a caption evaluation's, and what the model reads of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from visllama.data.collate import Collator
from visllama.data.record import images_of
from visllama.data.samples import Sample, SampleMaker
from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.caption_task import image_ids
from visllama.evaluation.prompts import prompts_of_records
from visllama.images.decode import open_image
from visllama.model.visllama import VisLlama


class Pictures(NamedTuple):
    """Pictures with their references.

    Attributes:
        name: The name of the evaluation that the pictures are from.
        evaluation: The evaluation's configuration.
        records: The records, one picture each.
        keys: The id of each picture, as text.
    """

    name: str
    evaluation: Mapping
    records: list[dict]
    keys: list[str]

    @property
    def references(self) -> dict[str, list[str]]:
        """The reference captions of each picture, by its id."""
        return {key: record["captions"] for key, record in zip(self.keys, self.records, strict=True)}


def read_pictures(name: str, evaluation: Mapping, source: Source, num_pictures: int) -> Pictures:
    """Read pictures of an evaluation, evenly spaced over its source.

    Args:
        name: The name of the evaluation.
        evaluation: The evaluation's configuration.
        source: The evaluation's source.
        num_pictures: The number of pictures; a smaller source is read whole.

    Raises:
        ConfigError: If the source holds fewer than two, or a record cannot be read or has not exactly one picture.
    """
    where = f"evaluation.{name}.source"
    count = min(num_pictures, len(source))
    if count < 2:
        raise ConfigError(f"{where}: holds {len(source)} records: at least two pictures have to differ")

    # All are decoded now: a picture that is damaged should not end the work after an hour of captioning.
    try:
        records = [source.read(number * len(source) // count) for number in range(count)]
        for record in records:
            for image in images_of(record):
                open_image(image)
    except BadRecord as error:
        raise ConfigError(f"{where}: a record cannot be read: {error}") from error

    for record in records:
        num_images = len(images_of(record))
        if num_images != 1:
            raise ConfigError(
                f"{where}: record {record['key']} has {num_images} images: a connector is looked at on records of one"
            )

    ids = image_ids(prompts_of_records(records), name)
    return Pictures(name, evaluation, records, keys=[str(image_id) for image_id in ids])


def make_samples(maker: SampleMaker, records: Sequence[Mapping]) -> list[Sample]:
    """Return the Samples of records that are to be captioned."""
    return [maker(record, answered=False) for record in records]


@torch.inference_mode()
def encode(model: VisLlama, collator: Collator, samples: Sequence[Sample]) -> Float[Tensor, "N K D"]:
    """Return the image embeds of samples of one picture each, in main memory."""
    size = collator.micro_batch_size
    parts = []
    for start in range(0, len(samples), size):
        batch = collator.generation_batch(samples[start : start + size])
        pixel_values = batch["pixel_values"].to(model.markers.device)
        image_embeds = model.encode_images(pixel_values)
        parts.append(image_embeds.cpu())

    return torch.cat(parts)
