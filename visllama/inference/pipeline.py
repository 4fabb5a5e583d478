"""`visllama.load(weights)`: a trained model to use, pictures and questions in and text out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.inference.chat import Chat
from visllama.inference.hub import fetch_weights, is_repository
from visllama.inference.writer import Picture, Writer, greedy, is_list
from visllama.machine.devices import find_device
from visllama.model.weights import load_weights
from visllama.text.settings import TextSettings


class Pipeline(Writer):
    """A trained model.

    Args:
        model: With all its weights.
        text: How the texts of its training were made.
        batch_size: Pictures at once; it changes speed, not text.
    """

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
        captioner = Captioner(self.maker, greedy() | decoding, self.batch_size)
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
        return answers if is_list(images) or is_list(questions) else answers[0]

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
        prompts: str | Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the language model reads when it is asked, for a `generate` of your own.

        `language_model.generate(inputs_embeds=..., attention_mask=..., eos_token_id=pipeline.end_ids)` then writes what
        `ask` does: on `pipeline.model.language_model`, or on what `visllama export format=language_model` wrote. What
        an engine that serves it is sent: `visllama.inference.vllm`.

        Args:
            images: As of `ask`.
            prompts: As the questions of `ask`. None reads each picture as `caption` does.

        Returns:
            `inputs_embeds` `(B, T, D)` and `attention_mask` `(B, T)`, padded on the left, on the model's device.

        Raises:
            ConfigError: If the lists are of different lengths, or a picture cannot be read.
        """
        samples = self._uncaptioned(images) if prompts is None else self._samples(images, prompts)
        batch = self.batch(samples)
        return self.model.embed(batch["input_ids"], batch["pixel_values"]), batch["attention_mask"]

    def _uncaptioned(self, images: Picture | Sequence[Picture]) -> list[Sample]:
        """Make a Sample of each picture, to be captioned."""
        records = [{"key": str(i), "image": image} for i, image in enumerate(self.read(images))]
        return [self.maker(record, answered=False) for record in records]

    def _samples(self, images: object, questions: str | Sequence[str]) -> list[Sample]:
        """Make a Sample of each question, to be answered."""
        asked = list(questions) if is_list(questions) else [questions]
        shown = list(images) if is_list(images) else [images] * len(asked)
        asked = asked if is_list(questions) else asked * len(shown)
        if len(shown) != len(asked):
            raise ConfigError(
                f"{len(shown)} images and {len(asked)} questions: give as many of both, or one alone, outside a list"
            )
        records = [
            {"key": str(i), "images": self.read(shown[i]), "questions": [{"question": asked[i], "answers": [""]}]}
            for i in range(len(asked))
        ]
        return [self.maker(record, answered=False) for record in records]


def load(
    weights: str | Path,
    plugins: Sequence[str] = (),
    models: str | Path | None = None,
    accelerator: str = "auto",
    dtype: torch.dtype | None = None,
    merge: bool = False,
    device: str | torch.device | None = None,
    revision: str | None = None,
) -> Pipeline:
    """Load trained weights to use them.

    Args:
        weights: The `weights/` folder of a run, or, where there is no such folder, a repository on the Hugging Face hub
            that holds one: `user/name`.
        plugins: Your packages, where a part of the model is your own. A repository names none.
        models: Where base models lie; None is `VISLLAMA_MODELS`, else `models`.
        accelerator: "auto" (cuda, else mps, else cpu), or one of them.
        dtype: Of the frozen weights; None is bf16 on cuda, else fp32.
        merge: Add LoRA, where there is one, to the language model's weights: faster, and up to the dtype's rounding the
            same.
        device: Such as "cuda:1"; None is what `accelerator` finds.
        revision: Of a repository: the commit to load. Give its 40 digits: the owner can change what a branch or a tag
            names. None is what the branch `main` holds now.

    Raises:
        ConfigError: If the folder or the repository is none of ours or not to be had, or does not fit its base models.
    """
    folder = _find_weights(weights, revision)
    device = find_device(accelerator) if device is None else torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = models or os.environ.get("VISLLAMA_MODELS", "models")
    model, description = load_weights(folder, dtype, plugins=plugins, models=models)
    if merge:
        model.merge_adapter()
    return Pipeline(model.to(device), TextSettings.from_dict(description["text"]))


def _find_weights(weights: str | Path, revision: str | None) -> Path:
    """Return the folder that holds the weights; a repository's are fetched, where there is no folder of that name."""
    is_folder = Path(weights).is_dir()
    if not is_folder and is_repository(weights):
        return fetch_weights(weights, revision)
    if revision is not None:
        found = "a folder" if is_folder else "no repository on the hub"
        raise ConfigError(f"revision={revision}: weights={weights} is {found}; leave revision out, or give user/name")
    return Path(weights)
