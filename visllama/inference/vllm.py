"""Request bodies for vLLM, which serves an exported language model and is sent an image as vectors.

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
    """Return the body of a request to `/v1/completions`: the whole prompt as vectors, exactly as `ask` reads it.

    Args:
        pipeline: The weights, as `visllama.load` gives them; the merged language model is the server's.
        model: The server's name of the model: the folder that it serves.
        image: One picture, several, or none.
        prompt: The question; None asks for a caption.
        max_tokens: The most tokens of the answer.
        sampling: Further keys of the body, as `temperature`, which is 0 unless given.
    """
    images = None if image is None else [image] if prompt is None else [list_of(image)]
    prompts = None if prompt is None else [prompt]
    inputs_embeds, _ = pipeline.embed(images, prompts)
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
    """Return the body of a request to `/v1/chat/completions`: an image as vectors, and a question as text.

    The server writes the chat template around them, and tokenises the question; `completion_body` is exact whatever the
    tokenizer joins.

    Args:
        pipeline: The weights, as `visllama.load` gives them.
        model: The server's name of the model: the folder that it serves.
        image: One picture, or several.
        question: The question.
        max_tokens: The most tokens of the answer.
        sampling: Further keys of the body, as `temperature`, which is 0 unless given.

    Raises:
        ConfigError: If the run's template has words between an image and the question.
    """
    vectors = _embed_images(pipeline, list_of(image))
    content = [{"type": "prompt_embeds", "data": encode_vectors(vectors)}, {"type": "text", "text": question}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "stop_token_ids": pipeline.end_ids,
        "temperature": 0,
        **sampling,
    }


def encode_vectors(vectors: Float[Tensor, "T D"]) -> str:
    """Return vectors as vLLM takes them: what `torch.save` writes, in base64."""
    file = io.BytesIO()
    torch.save(vectors.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def list_of(image: Picture | Sequence[Picture]) -> list[Picture]:
    """Return one picture or several as a list."""
    return [image] if isinstance(image, Picture) else list(image)


@torch.no_grad()
def _embed_images(pipeline: Pipeline, images: list[Picture]) -> Float[Tensor, "T D"]:
    """Return the vectors of images and of what the template writes behind each."""
    template = pipeline.maker.template
    if not _images_precede_text(template):
        raise ConfigError(
            "the template of these weights has words between an image and the question, where a chat has no place for "
            "vectors: send completion_body to /v1/completions"
        )
    segments = Template("{human}", "{human}", image=template.image).segments([Turn("human", "", len(images))])
    bos_count = 0 if pipeline.maker.tokenizer.bos_token_id is None else 1
    input_ids = pipeline.maker.tokenise(segments)[0][bos_count:]
    device = pipeline.model.markers.device
    pixels = torch.stack([pipeline.maker.transform(image) for image in pipeline.read(images)]).to(device)
    return pipeline.model.embed(torch.tensor([input_ids], device=device), pixels)[0]


def _images_precede_text(template: Template) -> bool:
    """Return whether images stand directly before a human's words, also in the first turn."""
    first = template.with_system if template.system else template.first or template.human
    forms = (first, template.human)
    return all("{images}" not in form or "{images}{human}" in form for form in forms)
