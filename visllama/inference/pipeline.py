"""`visllama.load(weights)`: a trained model that takes pictures and questions, and returns texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
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
    """A trained model that captions pictures and answers questions about them.

    Args:
        model: A model with all its weights.
        text: The settings by which the texts of its training were made.
        batch_size: The number of pictures, or of questions, that are worked on at once. It is a matter of speed and
            memory, unless the decoding samples: which tokens are drawn depends on the batch.
    """

    def caption(self, images: Picture | Sequence[Picture], **decoding) -> str | list[str]:
        """Generate a caption of each picture.

        Args:
            images: One picture (a path or a PIL image), or a list of pictures.
            decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

        Returns:
            The caption if `images` is one picture; a list of captions, in the order of the pictures, if it is a list.

        Raises:
            ConfigError: If a picture cannot be read, or the prompt and the new tokens do not fit the language model's
                positions.
        """
        if isinstance(images, Picture):
            return self.caption([images], **decoding)[0]

        captioner = Captioner(self.maker, {**greedy(), **decoding}, self.batch_size)
        records = [{"key": str(i), "image": image} for i, image in enumerate(self.read(images))]
        captioner.check_room(self.model, records)
        return captioner(self.model, records)

    def ask(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None,
        questions: str | Sequence[str],
        **decoding,
    ) -> str | list[str]:
        """Generate answers to questions about pictures. Each question is answered without regard to the others.

        Args:
            images: One picture (a path or a PIL image), or a list with an entry for each question: a picture, a list of
                pictures, or None. None asks without a picture.
            questions: One question, or a list. One picture is shown to all questions, and one question is asked about
                all pictures; two lists go together entry by entry.
            decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

        Returns:
            One answer if neither `images` nor `questions` is a list; otherwise a list of answers, in order.

        Raises:
            ConfigError: If the lists are of different lengths, a picture cannot be read, or a question does not fit the
                language model's positions.
        """
        # Without the cache of a conversation, so that no question sees another.
        samples = self._samples(images, questions)
        answers = []
        for start in range(0, len(samples), self.batch_size):
            ids = self.write(samples[start : start + self.batch_size], decoding)
            texts = self.maker.tokenizer.batch_decode(ids, skip_special_tokens=True)
            answers += [text.strip() for text in texts]

        if is_list(images) or is_list(questions):
            return answers
        return answers[0]

    def chat(self, images: Picture | Sequence[Picture] | None = None, system: str | None = None) -> Chat:
        """Return a new `Chat`, a conversation in which `say(text, images)` returns the answer to each turn.

        A model whose training had single turns only may return empty answers in later turns.

        Args:
            images: A picture (a path or a PIL image) or a list of pictures to show before the text of the first turn;
                None shows none.
            system: The system text before all turns; None takes the template's own, and "" none at all.

        Raises:
            ConfigError: If a picture cannot be read.
        """
        return Chat(self, images, system)

    @torch.no_grad()
    def embed(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None,
        prompts: str | Sequence[str] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Int[Tensor, "B T"]]:
        """Return the input vectors of the language model for captions or questions, to call its `generate` yourself.

        `language_model.generate(inputs_embeds=..., attention_mask=..., eos_token_id=pipeline.end_ids)` then generates
        what `ask` returns: on `pipeline.model.language_model`, or on the model that `visllama export
        format=language_model` wrote. `visllama.inference.vllm` builds the requests to an engine that serves that model.

        Args:
            images: Pictures, as `ask` takes them; without `prompts` one picture or a list of pictures.
            prompts: One question or a list, as `ask` takes them. None asks for a caption of each picture.

        Returns:
            `inputs_embeds` and `attention_mask`, with one row for each question or caption, padded on the left, on the
            model's device. All rows are computed at once, whatever `batch_size` is.

        Raises:
            ConfigError: If the lists are of different lengths, or a picture cannot be read.
            ValueError: If there is nothing to embed, for example an empty list.
        """
        if prompts is None:
            # Without questions a list holds pictures, not lists of them.
            samples = self._uncaptioned(cast("Picture | Sequence[Picture] | None", images))
        else:
            samples = self._samples(images, prompts)

        batch = self.batch(samples)
        inputs_embeds = self.model.embed(batch["input_ids"], batch["pixel_values"])
        return inputs_embeds, batch["attention_mask"]

    def _uncaptioned(self, images: Picture | Sequence[Picture] | None) -> list[Sample]:
        """Return a Sample of each picture, to be captioned."""
        records = [{"key": str(i), "image": image} for i, image in enumerate(self.read(images))]
        return [self.maker(record, answered=False) for record in records]

    def _samples(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None] | None,
        questions: str | Sequence[str],
    ) -> list[Sample]:
        """Return a Sample of each question, to be answered."""
        question_texts = [questions] if isinstance(questions, str) else list(questions)

        # One picture, or none, is shown to all questions; one question is asked about all pictures.
        if images is None or isinstance(images, Picture):
            images_of_questions = [images] * len(question_texts)
        else:
            images_of_questions = list(images)
        if isinstance(questions, str):
            question_texts = [questions] * len(images_of_questions)

        if len(images_of_questions) != len(question_texts):
            raise ConfigError(
                f"{len(images_of_questions)} images and {len(question_texts)} questions: give as many of both, or one "
                f"alone, outside a list"
            )

        samples = []
        for number, question in enumerate(question_texts):
            record = {
                "key": str(number),
                "images": self.read(images_of_questions[number]),
                "questions": [{"question": question, "answers": [""]}],
            }
            samples.append(self.maker(record, answered=False))
        return samples


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
    """Load trained weights, and return a pipeline that uses them.

    Args:
        weights: The `weights/` folder of a run. If there is no such folder, the name `user/name` of a repository on the
            Hugging Face hub that holds the files of such a folder.
        plugins: The names of your importable packages, if a part of the model is your own. A repository cannot name
            packages.
        models: The folder of the base models; None means the environment variable `VISLLAMA_MODELS`, or `models`.
        accelerator: "cuda", "mps" or "cpu"; "auto" takes the first of the three that this machine has. A device that
            is missing is replaced by the CPU.
        dtype: The dtype of the frozen weights; None means bf16 on cuda, and fp32 elsewhere.
        merge: Whether LoRA, if there is one, is added to the language model's weights. That is faster, and the same up
            to the rounding of the dtype.
        device: The device, for example "cuda:1"; None means the one that `accelerator` names.
        revision: The commit of a repository. Give its 40 digits, since the owner can change what a branch or a tag
            names. None means what the branch `main` holds now.

    Raises:
        ConfigError: If the folder or the repository holds no weights of visllama, cannot be fetched, or does not fit
            its base models, or if `revision` is set although `weights` is a folder.
    """
    folder = _find_weights(weights, revision)
    device = find_device(accelerator) if device is None else torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = models or os.environ.get("VISLLAMA_MODELS", "models")

    model, description = load_weights(folder, dtype, plugins=plugins, models=models)
    if merge:
        model.merge_adapter()
    text = TextSettings.from_dict(description["text"])
    return Pipeline(model.to(device), text)


def _find_weights(weights: str | Path, revision: str | None) -> Path:
    """Return the folder that holds the weights; if there is none, the weights of that repository are fetched."""
    is_folder = Path(weights).is_dir()
    if not is_folder and is_repository(weights):
        return fetch_weights(weights, revision)

    # A folder has one state only.
    if revision is not None:
        found = "a folder" if is_folder else "no repository on the hub"
        raise ConfigError(f"revision={revision}: weights={weights} is {found}; leave revision out, or give user/name")
    return Path(weights)
