"""Where a model looked: how much each word of a caption attends to each image vector, or patch of the picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from visllama.data.samples import Sample
from visllama.images.transform import ImageTransform
from visllama.inference.pipeline import Pipeline
from visllama.model.visllama import VisLlama
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


class WordAttention(NamedTuple):
    """How much the words of a text attend to the image vectors before them.

    Attributes:
        words: The words, in their order.
        shares: For each word the share of its attention that each image vector has, `(words, K)`; the mean over its
            tokens, all layers and all heads. The rest goes to other tokens.
    """

    words: list[str]
    shares: np.ndarray


def has_patches(model: VisLlama) -> bool:
    """Return whether each image token of a model is a patch of the picture, and the patches fill a square."""
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
    words, shares = attention_of_words(pipeline.model, sample, written, pipeline.end_ids)
    side = math.isqrt(pipeline.model.num_image_tokens)
    maps = [row.reshape(side, side) for row in shares]
    return Looked(" ".join(words), words, maps, pipeline.maker.transform)


@torch.no_grad()
def attention_of_words(
    model: VisLlama, sample: Sample, written: Sequence[int], end_ids: Collection[int]
) -> WordAttention:
    """Read a sample of one picture and its caption once more, to see what each word attends to.

    Args:
        model: The model that has written the caption.
        sample: What the model has read.
        written: The ids of the caption, with or without the end.
        end_ids: The ids that end a text.
    """
    kept = list(takewhile(lambda i: i not in end_ids, written))
    words, places = _words(model.tokenizer, kept)
    if not words:
        return WordAttention([], np.zeros((0, model.num_image_tokens), np.float32))

    whole = [*sample.input_ids, *kept]
    device = model.markers.device
    pixel_values = torch.stack(sample.pixel_values).to(device)
    attention = _attention(model.language_model, model.embed(torch.tensor([whole], device=device), pixel_values))
    is_image = torch.tensor([i == PLACEHOLDER_ID for i in whole])
    shares = []
    for number in range(len(words)):
        rows = [len(sample.input_ids) + place for place, of in enumerate(places) if number in of]
        shares.append(attention[rows][:, is_image].mean(0).numpy())
    return WordAttention(words, np.stack(shares))


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[list[str], list[range]]:
    """Return the words of a text, and for each of its tokens which words it is of: one, or all that it begins."""
    words: list[str] = []
    places = []
    for end in range(1, len(ids) + 1):
        num_before = len(words)
        words = tokenizer.decode(ids[:end], skip_special_tokens=True).split()
        last = max(0, len(words) - 1)
        places.append(range(min(num_before, last), last + 1))
    return words, places


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


def heat_overlay(attention: np.ndarray) -> Image.Image:
    """Return what a word attends to as a picture of one pixel a patch, to be laid over the picture that was seen.

    Args:
        attention: The attention to the patches, `(rows, columns)`.
    """
    spread = float(attention.max() - attention.min()) or 1.0
    share = (attention - attention.min()) / spread
    colours = matplotlib.colormaps["inferno"](share)
    colours[..., 3] = 0.35 + 0.4 * share
    return Image.fromarray((255 * colours).astype(np.uint8))
