"""Read the pictures that a connector is inspected on, from a caption evaluation, and encode them as image vectors."""

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
    """Pictures of a caption evaluation, with their reference captions.

    Attributes:
        name: The name of the evaluation that the pictures are from.
        evaluation: The evaluation's configuration.
        records: The records; each holds one picture, and its reference captions under "captions".
        keys: The id of each picture as text, in the order of the records.
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
    """Read records of an evaluation's source, evenly spaced from its first record on, and check that they decode.

    Args:
        name: The name of the evaluation, for error messages.
        evaluation: The evaluation's configuration; it is kept in the result as it is.
        source: The evaluation's source, which is read.
        num_pictures: The number of pictures; a source with fewer records is read whole.

    Raises:
        ConfigError: If fewer than two pictures would be read, or if a record cannot be read, holds an image that does
            not decode, or holds another number of images than one.
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

    # Pictures and their image vectors are matched by their index, so each record must have one.
    for record in records:
        num_images = len(images_of(record))
        if num_images != 1:
            raise ConfigError(
                f"{where}: record {record['key']} has {num_images} images: a connector is looked at on records of one"
            )

    ids = image_ids(prompts_of_records(records), name)
    return Pictures(name, evaluation, records, keys=[str(image_id) for image_id in ids])


def make_samples(maker: SampleMaker, records: Sequence[Mapping]) -> list[Sample]:
    """Return for each record a Sample (tokens and pixels) that ends where the model has to write the caption.

    Args:
        maker: The maker, with the prompt and the template of the evaluation.
        records: The records, in the order of the result.

    Raises:
        BadRecord: If an image cannot be decoded.
    """
    return [maker(record, answered=False) for record in records]


@torch.inference_mode()
def encode(model: VisLlama, collator: Collator, samples: Sequence[Sample]) -> Float[Tensor, "N K D"]:
    """Return the K image vectors that a model's encoder and connector make of each picture, in main memory.

    Args:
        model: The model, on any device.
        collator: The collator that makes batches; its micro-batch size is the number of pictures in one pass.
        samples: The Samples, each with one picture, in the order of the result.
    """
    # In batches: what the encoder computes of all pictures at once might not fit on the device.
    size = collator.micro_batch_size
    parts = []
    for start in range(0, len(samples), size):
        batch = collator.generation_batch(samples[start : start + size])
        pixel_values = batch["pixel_values"].to(model.markers.device)
        image_embeds = model.encode_images(pixel_values)
        parts.append(image_embeds.cpu())

    return torch.cat(parts)
