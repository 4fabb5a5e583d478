"""Where a model looked: how much each word of a caption attends to each patch of the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from visllama.data.samples import Sample
from visllama.images.transform import ImageTransform
from visllama.inference.pipeline import Pipeline
from visllama.text.tokens import PLACEHOLDER_ID

_LONGEST_PX = 768
"""The longer side of a picture that a heat map is laid over."""


class Looked(NamedTuple):
    """A caption, and where its words looked.

    Attributes:
        caption: The caption.
        words: Its words.
        maps: For each word its attention to the patches, `(rows, columns)`; the rows are those of the encoder's image.
        transform: Which part of the picture the encoder sees.
    """

    caption: str
    words: list[str]
    maps: list[np.ndarray]
    transform: ImageTransform


def has_patches(pipeline: Pipeline) -> bool:
    """Return whether each image token of a model is a patch of the picture, and the patches fill a square."""
    model = pipeline.model
    num_patches = getattr(model.vision_encoder, "num_patches", 0)
    is_one_each = getattr(model.connector, "consumes", "") == "patch" and model.num_image_tokens == num_patches
    return is_one_each and num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches


@torch.no_grad()
def caption_and_look(pipeline: Pipeline, picture: Image.Image, decoding: Mapping[str, Any]) -> Looked:
    """Caption a picture, and read prompt and caption once more to see what each word attends to.

    Args:
        pipeline: A model that `has_patches`.
        picture: The picture.
        decoding: As transformers' `generate` takes it.

    Raises:
        ConfigError: If the caption does not fit the language model's positions.
    """
    sample = pipeline.maker({"key": "", "image": picture, "captions": [""]}, answered=False)
    (written,) = pipeline.write([sample], decoding)
    kept = list(takewhile(lambda i: i not in pipeline.end_ids, written))
    words, places = _words(pipeline, kept)
    if not words:
        return Looked("", [], [], pipeline.maker.transform)

    whole = [*sample.input_ids, *kept]
    batch = pipeline.batch([Sample("", whole, [], sample.pixel_values)])
    attention = _attention(pipeline.model.language_model, pipeline.model.embed(**_read(batch)))
    is_patch = torch.tensor([i == PLACEHOLDER_ID for i in whole])
    side = math.isqrt(int(is_patch.sum()))
    maps = []
    for number in range(len(words)):
        rows = [len(sample.input_ids) + place for place, word in enumerate(places) if word == number]
        maps.append(attention[rows][:, is_patch].mean(0).reshape(side, side).numpy())
    return Looked(" ".join(words), words, maps, pipeline.maker.transform)


def _words(pipeline: Pipeline, ids: list[int]) -> tuple[list[str], list[int]]:
    """Return the words of a text, and for each of its tokens which word it is of."""
    words: list[str] = []
    places = []
    for end in range(1, len(ids) + 1):
        words = pipeline.maker.tokenizer.decode(ids[:end], skip_special_tokens=True).split()
        places.append(max(0, len(words) - 1))
    return words, places


def _read(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "pixel_values")}


def _attention(language_model: PreTrainedModel, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Return the attention of each position to each, `(T, T)`, the mean over layers and heads.

    Other implementations than "eager" keep no attention, so it is chosen for this one pass.
    """
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        output = language_model(inputs_embeds=inputs_embeds, output_attentions=True, use_cache=False)
    finally:
        language_model.set_attn_implementation(before)
    return torch.stack([layer[0].float().mean(0) for layer in output.attentions]).mean(0).cpu()


def heat_map(picture: Image.Image, looked: Looked, word: int) -> Image.Image:
    """Return a picture with what a word attends to in bright colours over it.

    Args:
        picture: The picture that was captioned; a large one is made smaller.
        looked: Its caption.
        word: Which word of it.
    """
    attention = looked.maps[word]
    small = picture.copy()
    small.thumbnail((_LONGEST_PX, _LONGEST_PX))
    if max(small.size) < _LONGEST_PX // 2:  # a tiny one would be a blur on the page
        factor = _LONGEST_PX // 2 // max(small.size)
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)

    spread = float(attention.max() - attention.min()) or 1.0
    strength = Image.fromarray(((attention - attention.min()) / spread).astype(np.float32))
    left, top, right, bottom = (round(edge) for edge in looked.transform.seen_box(*small.size))
    strength = strength.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    laid = Image.new("F", small.size, 0.0)  # what was not seen stays dark
    laid.paste(strength, (left, top))

    share = np.clip(np.asarray(laid), 0, 1)
    colours = matplotlib.colormaps["inferno"](share)[..., :3] * 255
    weight = 0.35 + 0.4 * share[..., None]
    mixed = (1 - weight) * np.asarray(small.convert("RGB")) + weight * colours
    return Image.fromarray(mixed.astype(np.uint8))
