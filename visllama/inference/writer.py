"""A trained model that reads pictures and writes text: what `Pipeline` and `Chat` share."""

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
    """A trained model, with what turns pictures and texts into its inputs.

    Args:
        model: With all its weights.
        text: How the texts of its training were made.
        batch_size: Pictures at once; it changes speed, not text.
    """

    def __init__(self, model: VisLlama, text: TextSettings, batch_size: int = 32) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self.maker = sample_maker(model, text)
        self.end_ids = sorted({self.maker.end_id, model.tokenizer.eos_token_id})

    def read(self, images: Picture | Sequence[Picture] | None) -> list[Image.Image]:
        """Open pictures: none, one or several.

        Raises:
            ConfigError: If one cannot be read.
        """
        several = images if is_list(images) else [] if images is None else [images]
        return [image if isinstance(image, Image.Image) else read_image(image, str(image)) for image in several]

    def write(self, samples: Sequence[Sample], decoding: Mapping, cache: Cache | None = None) -> list[list[int]]:
        """Write on after samples, at once, and give each one's new ids.

        Args:
            samples: What is read; with a cache, one, which goes on from there.
            decoding: As transformers' `generate` takes it, beside the defaults.
            cache: See `VisLlama.generate`.

        Raises:
            ConfigError: If it does not fit the language model's positions, or more than one text is wanted of a sample.
        """
        settings = whole_decoding(self.maker, greedy() | decoding)
        if (settings.get("num_return_sequences") or 1) > 1:
            raise ConfigError(f"num_return_sequences={settings['num_return_sequences']}: one text is given for each")
        batch = self.batch(samples)
        length = batch["input_ids"].shape[1] + (0 if cache is None else cache.get_seq_length())
        check_positions(self.model.num_positions, length, settings, "", "say less, or begin another chat")
        return self.model.generate(**batch, cache=cache, **settings).tolist()

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Build one batch of samples to be continued, on the model's device."""
        maker, device = self.maker, self.model.markers.device
        collator = Collator(
            maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, self.batch_size
        )
        return Batch({name: tensor.to(device) for name, tensor in collator.generation_batch(samples).items()})


def is_list(given: object) -> bool:
    """Return whether `given` is a list, and neither one picture (or text) nor None."""
    return given is not None and not isinstance(given, Picture)


def greedy() -> dict:
    """Read the default arguments of `generate`, greedy and at most 40 tokens."""
    return read_conf("evaluation/decoding/greedy.yaml")
