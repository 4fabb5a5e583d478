"""The image span and its ids: the only module that knows a special token.

An image stands in `input_ids` as one *span*, `[boi] + K placeholders + [eoi]`. The three ids are negative, so no
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
    """Return the ids that stand for one image."""
    placeholders = [PLACEHOLDER_ID] * num_image_tokens
    return [BOI_ID, *placeholders, EOI_ID]


def sample_length(num_images: int, num_image_tokens: int, num_text_tokens: int) -> int:
    """Return the number of positions that a sample takes up: BOS, its image spans, and its text."""
    span_length = len(image_span(num_image_tokens))
    return 1 + num_images * span_length + num_text_tokens


def token_names(input_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return each id as a person reads it: markers and placeholders by name, text by the tokenizer's own pieces."""
    names = []
    for token_id in input_ids:
        # The ids of an image span are none of the tokenizer's.
        name = _NAMES.get(token_id) or tokenizer.convert_ids_to_tokens(token_id)
        names.append(cast(str, name))
    return names
