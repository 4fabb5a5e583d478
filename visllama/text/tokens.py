"""The ids that stand for an image in `input_ids`, and helpers that count and show them.

An image stands in `input_ids` as one *span*: BOI_ID (begin of image), K times PLACEHOLDER_ID, and EOI_ID (end of
image), where K is the number of vectors that the connector makes of an image. These ids are negative, so that no
tokenizer can produce them and LLaMA's vocabulary stays as it is; the model puts vectors of its own in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a position that is not learned, as in transformers."""

PLACEHOLDER_ID = -1
BOI_ID = -2
EOI_ID = -3

_NAMES = {PLACEHOLDER_ID: "[image]", BOI_ID: "[boi]", EOI_ID: "[eoi]"}


def image_span(num_image_tokens: int) -> list[int]:
    """Return a new list of the ids that stand for one image: BOI_ID, PLACEHOLDER_ID repeated, EOI_ID.

    Args:
        num_image_tokens: The number of placeholders, one for each vector that the connector makes of an image.
    """
    placeholders = [PLACEHOLDER_ID] * num_image_tokens
    return [BOI_ID, *placeholders, EOI_ID]


def sample_length(num_images: int, num_image_tokens: int, num_text_tokens: int) -> int:
    """Return the number of ids that a sample consists of: one BOS, the spans of its images, and its text.

    Args:
        num_images: The number of images in the sample.
        num_image_tokens: The number of placeholders of an image; its span has two ids more.
        num_text_tokens: The number of tokens of the text, without BOS.
    """
    span_length = len(image_span(num_image_tokens))
    return 1 + num_images * span_length + num_text_tokens


def token_names(input_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a readable name for each id of a sample, in the order of the ids.

    The ids of an image span are shown as "[boi]", "[image]" and "[eoi]"; every other id as the tokenizer's piece of
    text for it.
    """
    names = []
    for token_id in input_ids:
        # The ids of an image span are none of the tokenizer's.
        name = _NAMES.get(token_id) or tokenizer.convert_ids_to_tokens(token_id)
        names.append(cast(str, name))
    return names
