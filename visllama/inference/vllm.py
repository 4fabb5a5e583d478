"""Build request bodies for vLLM, which serves an exported language model and receives images as vectors.

`visllama export weights=W format=language_model out=DIR`, then `vllm serve DIR --enable-prompt-embeds`. The bodies go
to `/v1/completions` and `/v1/chat/completions`; nothing here sends anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visllama.errors import ConfigError
from visllama.inference.pipeline import Pipeline
from visllama.inference.writer import Picture
from visllama.text.template import Template, Turn


def completion_body(
    pipeline: Pipeline,
    model: str,
    image: Picture | Sequence[Picture] | None,
    prompt: str | None = None,
    max_tokens: int = 40,
    **sampling: Any,
) -> dict[str, Any]:
    """Return the JSON body of a request to vLLM's `/v1/completions`, with the whole prompt as vectors.

    The vectors are exactly those that `Pipeline.ask` or `Pipeline.caption` reads. Nothing is sent.

    Args:
        pipeline: The model, as `visllama.load` returns it, which computes the vectors; the server holds the language
            model that `visllama export format=language_model` wrote of the same weights.
        model: The name by which the server knows the model: the folder that it serves.
        image: One picture (a path or a PIL image), a list of pictures, or None for a question without a picture.
        prompt: The question; None asks for a caption, for which `image` has to be one picture.
        max_tokens: The largest number of tokens of the answer.
        sampling: Further keys of the body, for example `temperature`, whose default is 0.

    Raises:
        ConfigError: If a picture cannot be read.
    """
    if prompt is None:
        inputs_embeds, _ = pipeline.embed(None if image is None else [image])
    else:
        # One question with all pictures.
        images = None if image is None else [list_of(image)]
        inputs_embeds, _ = pipeline.embed(images, [prompt])

    return {
        "model": model,
        "prompt": "",
        "prompt_embeds": encode_vectors(inputs_embeds[0]),
        "max_tokens": max_tokens,
        "stop_token_ids": pipeline.end_ids,
        "temperature": 0,
        **sampling,
    }


def chat_body(
    pipeline: Pipeline,
    model: str,
    image: Picture | Sequence[Picture],
    question: str,
    max_tokens: int = 40,
    **sampling: Any,
) -> dict[str, Any]:
    """Return the JSON body of a request to vLLM's `/v1/chat/completions`: images as vectors, and a question as text.

    The server writes the chat template around vectors and text, and tokenises the question. A tokenizer may join the
    question's first word to the text before it in another way than in training; `completion_body` is exact with any
    tokenizer. Nothing is sent.

    Args:
        pipeline: The model, as `visllama.load` returns it, which computes the vectors.
        model: The name by which the server knows the model: the folder that it serves.
        image: One picture (a path or a PIL image), or a list of pictures.
        question: The question about the pictures.
        max_tokens: The largest number of tokens of the answer.
        sampling: Further keys of the body, for example `temperature`, whose default is 0.

    Raises:
        ConfigError: If a picture cannot be read, or the template of the weights has words between an image and the
            question.
    """
    vectors = _embed_images(pipeline, list_of(image))
    content = [
        {"type": "prompt_embeds", "data": encode_vectors(vectors)},
        {"type": "text", "text": question},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "stop_token_ids": pipeline.end_ids,
        "temperature": 0,
        **sampling,
    }


def encode_vectors(vectors: Float[Tensor, "T D"]) -> str:
    """Return vectors as the text that vLLM takes for `prompt_embeds`: a file of `torch.save`, in base64.

    Args:
        vectors: One vector of length D for each of T tokens, on any device.
    """
    file = io.BytesIO()
    # The clone: of a view `torch.save` would write the whole storage.
    torch.save(vectors.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def list_of(image: Picture | Sequence[Picture]) -> list[Picture]:
    """Return a single picture (a path or a PIL image) as a list of one, and a sequence of pictures as a new list."""
    return [image] if isinstance(image, Picture) else list(image)


@torch.no_grad()
def _embed_images(pipeline: Pipeline, images: list[Picture]) -> Float[Tensor, "T D"]:
    """Return the vectors of images, and of the text that the template writes behind each image."""
    template = pipeline.maker.template
    if not _images_precede_text(template):
        raise ConfigError(
            "the template of these weights has words between an image and the question, where a chat has no place for "
            "vectors: send completion_body to /v1/completions"
        )

    # A template without words around the human's turn leaves the images alone.
    only_images = Template("{human}", "{human}", image=template.image)
    segments = only_images.segments([Turn("human", "", len(images))])
    input_ids, _ = pipeline.maker.tokenise(segments)
    # The server writes the beginning of the text itself.
    if pipeline.maker.tokenizer.bos_token_id is not None:
        input_ids = input_ids[1:]

    device = pipeline.model.markers.device
    pixels = [pipeline.maker.transform(image) for image in pipeline.read(images)]
    pixel_values = torch.stack(pixels).to(device)
    return pipeline.model.embed(torch.tensor([input_ids], device=device), pixel_values)[0]


def _images_precede_text(template: Template) -> bool:
    """Return whether images stand directly before a human's words, in the first turn and in later ones."""
    first = template.first or template.human
    if template.system:
        first = template.with_system

    forms = (first, template.human)
    return all("{images}" not in form or "{images}{human}" in form for form in forms)
