"""A trained model that reads pictures and generates texts: the part that `Pipeline` and `Chat` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from transformers import Cache

from visllama.config.schema import read_conf
from visllama.data.collate import Batch, Collator
from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.evaluation.captioner import check_positions, whole_decoding
from visllama.evaluation.runner import sample_maker
from visllama.images.decode import read_image
from visllama.model.visllama import VisLlama
from visllama.text.settings import TextSettings

Picture = str | Path | Image.Image
"""A picture's file, or a PIL image."""


class Writer:
    """A trained model, and the maker that turns pictures and texts into its inputs.

    Args:
        model: A model with all its weights.
        text: The settings by which the texts of its training were made.
        batch_size: The number of pictures, or of questions, that are worked on at once. It is a matter of speed and
            memory, unless the decoding samples: which tokens are drawn depends on the batch.

    Attributes:
        model: The model.
        batch_size: The number of pictures, or of questions, that are worked on at once.
        maker: The `SampleMaker` that turns texts and pictures into the model's inputs.
        end_ids: The token ids that end a generated text, sorted.
    """

    def __init__(self, model: VisLlama, text: TextSettings, batch_size: int = 32) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.maker = sample_maker(model, text)
        self.end_ids = sorted({self.maker.end_id, model.tokenizer.eos_token_id})

    def read(self, images: Picture | Sequence[Picture] | None) -> list[Image.Image]:
        """Open pictures, and return them as a list of PIL images.

        Args:
            images: One picture (a path or a PIL image) or a list of pictures; None is an empty list. A PIL image is
                returned as it is.

        Raises:
            ConfigError: If a file cannot be read as a picture.
        """
        if images is None:
            return []
        # A path is a text, which Python would take for a sequence too.
        several = [images] if isinstance(images, Picture) else images

        opened = []
        for image in several:
            if not isinstance(image, Image.Image):
                image = read_image(image, str(image))
            opened.append(image)
        return opened

    def write(self, samples: Sequence[Sample], decoding: Mapping, cache: Cache | None = None) -> list[list[int]]:
        """Generate one text behind each sample, all in one batch, and return the new token ids of each sample.

        The ids include the end token that the model wrote, if any. Shorter lists are filled up with padding ids.

        Args:
            samples: The samples that the model reads, at least one. With a cache it is one sample, which holds only the
                tokens behind those in the cache.
            decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.
            cache: The cache of the tokens that the model has read before, to which the new ones are added; None means
                that nothing was read before.

        Raises:
            ConfigError: If a sample does not fit the language model's positions, or `num_return_sequences` is above 1.
        """
        settings = whole_decoding(self.maker, {**greedy(), **decoding})
        num_texts = settings.get("num_return_sequences") or 1
        if num_texts > 1:
            raise ConfigError(f"num_return_sequences={num_texts}: one text is given for each")

        batch = self.batch(samples)
        # What the cache holds takes positions too.
        length = batch["input_ids"].shape[1]
        if cache is not None:
            length += cache.get_seq_length()
        check_positions(self.model.num_positions, length, settings, "", "say less, or begin another chat")
        return self.model.generate(**batch, cache=cache, **settings).tolist()

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Return samples as one batch to generate from: ids padded on the left, their mask, and images.

        Its tensors are on the model's device.

        Args:
            samples: At least one sample; their order is kept.
        """
        collator = Collator(
            self.maker.tokenizer.pad_token_id,
            self.maker.num_image_tokens,
            self.maker.transform.size_px,
            self.batch_size,
        )
        batch = collator.generation_batch(samples)

        device = self.model.markers.device
        return Batch(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            pixel_values=batch["pixel_values"].to(device),
        )


def is_list(value: object) -> bool:
    """Return False for None, a text, a path or a PIL image, and True for any other value, which is taken for a list."""
    return value is not None and not isinstance(value, Picture)


def greedy() -> dict:
    """Return the default arguments of transformers' `generate`, as a mapping: one beam, and at most 40 new tokens."""
    return read_conf("evaluation/decoding/greedy.yaml")
