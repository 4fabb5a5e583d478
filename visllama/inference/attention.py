"""Measure how much each word of a caption attends to each image vector, or to each patch of the picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from visllama.data.samples import Sample
from visllama.evaluation.captioner import decode_text
from visllama.images.transform import ImageTransform
from visllama.inference.pipeline import Pipeline
from visllama.model.visllama import VisLlama
from visllama.text.tokens import PLACEHOLDER_ID

_LONGEST_PX = 768
"""The longer side, in pixels, of a picture that a heat map is laid over."""


class Looked(NamedTuple):
    """A caption of a picture, and how much each word of the caption attends to each patch of the picture.

    Attributes:
        caption: The caption: its words joined by single spaces.
        words: The words of the caption, in their order.
        maps: For each word its attention to each patch, with the patches arranged as they lie in the square image that
            the encoder reads. A value is a share of all attention of the word; the rest goes to other tokens.
        transform: The transform that prepared the picture, which knows the part of a picture that the encoder sees.
    """

    caption: str
    words: list[str]
    maps: list[Float[np.ndarray, "rows columns"]]
    transform: ImageTransform


class WordAttention(NamedTuple):
    """The attention of the words of a text to the image vectors before them.

    Attributes:
        words: The words, in their order.
        shares: The share of each word's attention that each image vector has: the mean over the word's tokens, all
            layers and all heads. The rest of the attention goes to other tokens.
    """

    words: list[str]
    shares: Float[np.ndarray, "words K"]


def has_patches(model: VisLlama) -> bool:
    """Return whether each image token of a model is a patch of the picture, and the patches fill a square."""
    # Encoders and connectors may be the user's own, which need not have these attributes.
    num_patches = getattr(model.vision_encoder, "num_patches", 0)
    reads_patches = getattr(model.connector, "consumes", "") == "patch"
    if not reads_patches or model.num_image_tokens != num_patches:
        return False

    # Only here is it sure to be a number: an encoder of the user's own may have anything under this name.
    return num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches


@torch.no_grad()
def caption_and_look(pipeline: Pipeline, picture: Image.Image, decoding: Mapping[str, Any]) -> Looked:
    """Generate a caption of a picture, and compute how much each word of the caption attends to each patch.

    Args:
        pipeline: The pipeline of a model for which `has_patches` is true.
        picture: The picture.
        decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

    Raises:
        ConfigError: If the caption does not fit the language model's positions.
    """
    record = {"key": "", "image": picture, "captions": [""]}
    sample = pipeline.maker(record, answered=False)
    (written,) = pipeline.write([sample], decoding)
    word_attention = attention_of_words(pipeline.model, sample, written, pipeline.end_ids)

    # `has_patches` is true, so the patches fill a square.
    side = math.isqrt(pipeline.model.num_image_tokens)
    maps = [row.reshape(side, side) for row in word_attention.shares]
    caption = " ".join(word_attention.words)
    return Looked(caption, word_attention.words, maps, pipeline.maker.transform)


@torch.no_grad()
def attention_of_words(
    model: VisLlama,
    sample: Sample,
    written: Sequence[int],
    end_ids: Collection[int],
) -> WordAttention:
    """Compute how much each word of a caption attends to each image vector, in one more pass of the model.

    Args:
        model: The model that has generated the caption.
        sample: The sample from which the caption was generated: a prompt with one picture.
        written: The token ids of the caption, with or without an end token.
        end_ids: The token ids that end a text; `written` is read up to the first of these ids.

    Returns:
        The words of the caption, and the share of attention that each word has for each image vector; no words if the
        caption is empty.
    """
    caption_ids = list(takewhile(lambda token: token not in end_ids, written))
    words, words_of_tokens = _words(model.tokenizer, caption_ids)
    if not words:
        no_shares = np.zeros((0, model.num_image_tokens), np.float32)
        return WordAttention([], no_shares)

    num_prompt_tokens = len(sample.input_ids)
    ids = [*sample.input_ids, *caption_ids]
    device = model.markers.device
    pixel_values = torch.stack(sample.pixel_values).to(device)
    input_ids = torch.tensor([ids], device=device)
    inputs_embeds = model.embed(input_ids, pixel_values)
    attention = _attention(model.language_model, inputs_embeds)

    is_image = torch.tensor([token == PLACEHOLDER_ID for token in ids])
    shares = []
    for number in range(len(words)):
        rows = []
        for place, word_numbers in enumerate(words_of_tokens):
            if number in word_numbers:
                rows.append(num_prompt_tokens + place)
        # A word of several tokens has the mean of their attention.
        of_tokens = attention[rows][:, is_image]
        share = of_tokens.mean(0)
        shares.append(share.numpy())
    return WordAttention(words, np.stack(shares))


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[list[str], list[range]]:
    """Return the words of a text, and for each token the numbers of the words that it belongs to.

    A token belongs to one word, or to all words that it begins.
    """
    words: list[str] = []
    words_of_tokens = []
    # A token alone does not show where words begin: the text so far is decoded anew with each token.
    for end in range(1, len(ids) + 1):
        num_before = len(words)
        words = decode_text(tokenizer, ids[:end]).split()
        last = max(0, len(words) - 1)
        first = min(num_before, last)
        words_of_tokens.append(range(first, last + 1))
    return words, words_of_tokens


def _attention(language_model: PreTrainedModel, inputs_embeds: Float[Tensor, "1 T D"]) -> Float[Tensor, "T T"]:
    """Return the attention of each position to each, the mean over layers and heads, on the CPU.

    Other implementations than "eager" keep no attention, so "eager" is chosen for this one pass.
    """
    # transformers chooses one when it builds a model; None stands in its annotations for a bare configuration.
    before = cast(str, language_model.config._attn_implementation)
    language_model.set_attn_implementation("eager")
    try:
        output = language_model(inputs_embeds=inputs_embeds, output_attentions=True, use_cache=False)
    finally:
        language_model.set_attn_implementation(before)

    of_layers = [layer[0].float().mean(0) for layer in output.attentions]
    return torch.stack(of_layers).mean(0).cpu()


def heat_map(picture: Image.Image, looked: Looked, word: int) -> Image.Image:
    """Return a copy of a picture with colours over it, which are brighter where a word of the caption attends more.

    The longer side of the copy has at most 768 pixels; a tiny picture is made larger. Parts of the picture that the
    encoder does not see are the darkest.

    Args:
        picture: The picture that was captioned, which is not changed.
        looked: The caption of the picture with the attention of its words, as `caption_and_look` returns it.
        word: The place of the word in `looked.words`, from 0.

    Raises:
        IndexError: If the caption has no such word.
    """
    small = _resize_for_page(picture)
    attention = _from_zero_to_one(looked.maps[word])
    strength = Image.fromarray(attention.astype(np.float32))
    seen_box = looked.transform.seen_box(*small.size)
    left, top, right, bottom = (round(edge) for edge in seen_box)
    strength = strength.resize((right - left, bottom - top), Image.Resampling.BILINEAR)

    # What the encoder did not see stays dark.
    whole_picture = Image.new("F", small.size, 0.0)
    whole_picture.paste(strength, (left, top))

    share = np.clip(np.asarray(whole_picture), 0, 1)
    colours = matplotlib.colormaps["inferno"](share)[..., :3] * 255
    weight = 0.35 + 0.4 * share[..., None]
    picture_colours = np.asarray(small.convert("RGB"))
    mixed = (1 - weight) * picture_colours + weight * colours
    return Image.fromarray(mixed.astype(np.uint8))


def _resize_for_page(picture: Image.Image) -> Image.Image:
    """Return a copy of a picture that is neither too large for a page nor so small that it would be a blur on it."""
    copy = picture.copy()
    copy.thumbnail((_LONGEST_PX, _LONGEST_PX))
    longest = max(copy.size)
    if longest >= _LONGEST_PX // 2:
        return copy

    factor = _LONGEST_PX // 2 // longest
    enlarged_size = (copy.width * factor, copy.height * factor)
    return copy.resize(enlarged_size, Image.Resampling.NEAREST)


def heat_overlay(attention: Float[np.ndarray, "rows columns"]) -> Image.Image:
    """Return the attention of a word as an RGBA picture with one pixel for each patch, to be laid over the picture.

    Pixels are brighter and more opaque where the attention is stronger; none is wholly opaque or transparent.

    Args:
        attention: The attention of the word to the patches: an entry of `Looked.maps`.
    """
    share = _from_zero_to_one(attention)
    colours = matplotlib.colormaps["inferno"](share)
    # The fourth channel is opacity: the picture has to show through also where the attention is strongest.
    colours[..., 3] = 0.35 + 0.4 * share
    pixels = (255 * colours).astype(np.uint8)
    return Image.fromarray(pixels)


def _from_zero_to_one(attention: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """Return attention scaled to the range from 0 to 1; equal attention everywhere becomes 0."""
    least = attention.min()
    spread = float(attention.max() - least) or 1.0
    return (attention - least) / spread
