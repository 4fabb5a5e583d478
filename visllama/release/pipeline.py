"""`visllama.load(weights)`: a trained model to use, pictures and questions in and text out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from transformers import Cache

from visllama.config import conf_dir
from visllama.data.collate import Batch, Collator
from visllama.data.images import read_image
from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner, check_positions, whole_decoding
from visllama.evaluation.runner import sample_maker
from visllama.hardware import find_device
from visllama.model.visllama import VisLlama
from visllama.model.weights import load_weights
from visllama.release.chat import Chat

Picture = str | Path | Image.Image


class Pipeline:
    """A trained model.

    Args:
        model: With all its weights.
        text: `prompt`, `max_text_tokens` and `template` of its training.
        batch_size: Pictures at once; it changes speed, not text.
    """

    def __init__(self, model: VisLlama, text: Mapping, batch_size: int = 32) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self.maker = sample_maker(model, **text)
        self.end_ids = sorted({self.maker.end_id, model.tokenizer.eos_token_id})

    def caption(self, images: Picture | Sequence[Picture], **decoding) -> str | list[str]:
        """Describe pictures.

        Args:
            images: One (a path or a PIL image), or a list.
            decoding: As transformers' `generate` takes it; greedy and at most 40 tokens unless told otherwise.

        Returns:
            The caption of one picture, or a list of them.

        Raises:
            ConfigError: If a picture cannot be read, or a caption does not fit the language model's positions.
        """
        if isinstance(images, Picture):
            return self.caption([images], **decoding)[0]
        captioner = Captioner(self.maker, _greedy() | decoding, self.batch_size)
        records = [{"key": str(i), "image": image} for i, image in enumerate(self.read(images))]
        captioner.check_room(self.model, records)
        return captioner(self.model, records)

    def ask(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None,
        questions: str | Sequence[str],
        **decoding,
    ) -> str | list[str]:
        """Ask questions about pictures, each by itself, in the words of the weights' template.

        Args:
            images: One, or a list with an entry for each question: a picture, a list of pictures, or None.
                None asks about nothing.
            questions: One, or a list. One image is shown to all questions, one question is asked of all images; two
                lists go together entry by entry.
            decoding: As transformers' `generate` takes it; greedy and at most 40 tokens unless told otherwise.

        Returns:
            The answer to one question about one image; a list of them where either is a list.

        Raises:
            ConfigError: If the lists are of different lengths, a picture cannot be read, or a question does not fit the
                language model's positions.
        """
        samples, answers = self._samples(images, questions), []
        for start in range(0, len(samples), self.batch_size):
            ids = self.write(samples[start : start + self.batch_size], decoding)
            answers += [text.strip() for text in self.maker.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return answers if _is_list(images) or _is_list(questions) else answers[0]

    def chat(self, images: Picture | Sequence[Picture] | None = None, system: str | None = None) -> Chat:
        """Begin a conversation: `.say(text, images)` answers, turn by turn.

        A model whose training showed it single turns may fall silent in later ones.

        Args:
            images: They stand before the first turn's text.
            system: What the model is told before all; None is what its template says.
        """
        return Chat(self, images, system)

    @torch.no_grad()
    def embed(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None,
        prompts: str | Sequence[str],
    ) -> tuple[Tensor, Tensor]:
        """Give what the language model reads when it is asked, for a `generate` of your own.

        `language_model.generate(inputs_embeds=..., attention_mask=..., eos_token_id=pipeline.end_ids)` then writes what
        `ask` does: on `pipeline.model.language_model`, or, where no adapter was trained, on the same language model as
        transformers itself loads it.

        Args:
            images: As of `ask`.
            prompts: As the questions of `ask`.

        Returns:
            `inputs_embeds` `(B, T, D)` and `attention_mask` `(B, T)`, padded on the left, on the model's device.

        Raises:
            ConfigError: If the lists are of different lengths, or a picture cannot be read.
        """
        batch = self._batch(self._samples(images, prompts))
        return self.model.embed(batch["input_ids"], batch["pixel_values"]), batch["attention_mask"]

    def read(self, images: Picture | Sequence[Picture] | None) -> list[Image.Image]:
        """Open pictures: none, one or several.

        Raises:
            ConfigError: If one cannot be read.
        """
        several = images if _is_list(images) else [] if images is None else [images]
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
        settings = whole_decoding(self.maker, _greedy() | decoding)
        if (settings.get("num_return_sequences") or 1) > 1:
            raise ConfigError(f"num_return_sequences={settings['num_return_sequences']}: one text is given for each")
        batch = self._batch(samples)
        length = batch["input_ids"].shape[1] + (0 if cache is None else cache.get_seq_length())
        check_positions(self.model.num_positions, length, settings, "", "say less, or begin another chat")
        return self.model.generate(**batch, cache=cache, **settings).tolist()

    def _samples(self, images: object, questions: str | Sequence[str]) -> list[Sample]:
        """Make a Sample of each question, to be answered."""
        asked = list(questions) if _is_list(questions) else [questions]
        shown = list(images) if _is_list(images) else [images] * len(asked)
        asked = asked if _is_list(questions) else asked * len(shown)
        if len(shown) != len(asked):
            raise ConfigError(
                f"{len(shown)} images and {len(asked)} questions: give as many of both, or one alone, outside a list"
            )
        records = [
            {"key": str(i), "images": self.read(shown[i]), "questions": [{"question": asked[i], "answers": [""]}]}
            for i in range(len(asked))
        ]
        return [self.maker(record, answered=False) for record in records]

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        maker, device = self.maker, self.model.markers.device
        collator = Collator(
            maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, self.batch_size
        )
        return Batch({name: tensor.to(device) for name, tensor in collator.generation_batch(samples).items()})


def _is_list(given: object) -> bool:
    return given is not None and not isinstance(given, Picture)


def _greedy() -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "evaluation" / "decoding" / "greedy.yaml"))


def load(
    weights: str | Path,
    plugins: Sequence[str] = (),
    models: str | Path | None = None,
    accelerator: str = "auto",
    dtype: torch.dtype | None = None,
    merge: bool = False,
) -> Pipeline:
    """Load trained weights to use them.

    Args:
        weights: The `weights/` folder of a run.
        plugins: Your packages, where a part of the model is your own.
        models: Where base models lie; None is `VISLLAMA_MODELS`, else `models`.
        accelerator: "auto" (cuda, else mps, else cpu), or one of them.
        dtype: Of the frozen weights; None is bf16 on cuda, else fp32.
        merge: Add LoRA, where there is one, to the language model's weights: faster, and up to the dtype's rounding the
            same.

    Raises:
        ConfigError: If the folder is none of ours, or does not fit its base models.
    """
    device = find_device(accelerator)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = models or os.environ.get("VISLLAMA_MODELS", "models")
    model, description = load_weights(Path(weights), dtype, plugins=plugins, models=models)
    if merge:
        model.merge_adapter()
    return Pipeline(model.to(device), description["text"])
