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
        maker: The maker of the model's Samples.
        end_ids: The ids that end a text.
    """

    def __init__(self, model: VisLlama, text: TextSettings, batch_size: int = 32) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.maker = sample_maker(model, text)
        self.end_ids = sorted({self.maker.end_id, model.tokenizer.eos_token_id})

    def read(self, images: Picture | Sequence[Picture] | None) -> list[Image.Image]:
        """Return pictures as PIL images.

        Args:
            images: One picture, several or none.

        Raises:
            ConfigError: If a picture cannot be read.
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
        """Generate after samples, all in one batch, and return the new ids of each sample.

        Args:
            samples: The samples that are read; with a cache, one sample that goes on from it.
            decoding: Arguments of transformers' `generate`, which replace the defaults.
            cache: The cache of what was read before, as `VisLlama.generate` takes it.

        Raises:
            ConfigError: If a sample does not fit the language model's positions, or more than one text is wanted for a
                sample.
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
        """Return one batch of samples that are to be continued, on the model's device."""
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
    """Return whether a value is a list of pictures or texts, and neither a single one nor None."""
    return value is not None and not isinstance(value, Picture)


def greedy() -> dict:
    """Return the default arguments of `generate`: greedy, with at most 40 tokens."""
    return read_conf("evaluation/decoding/greedy.yaml")
