"""The image span and its ids: the only file that knows a special token.

An image stands in `input_ids` as one *span*, `[boi] + K placeholders + [eoi]`. The three ids are negative, so no
tokenizer can produce them and LLaMA's vocabulary stays as it is; the model puts vectors of its own in their place.
"""

from __future__ import annotations

IGNORE_INDEX = -100
"""Label of a position that is not learned (transformers' value)."""

PLACEHOLDER_ID = -1
BOI_ID = -2
EOI_ID = -3

_NAMES = {PLACEHOLDER_ID: "[image]", BOI_ID: "[boi]", EOI_ID: "[eoi]"}


def image_span(num_image_tokens: int) -> list[int]:
    """Return the ids that stand for one image."""
    return [BOI_ID, *[PLACEHOLDER_ID] * num_image_tokens, EOI_ID]


def sample_length(num_images: int, num_image_tokens: int, num_text_tokens: int) -> int:
    """Return the positions that a sample takes up: BOS, its image spans, and its text."""
    return 1 + num_images * len(image_span(num_image_tokens)) + num_text_tokens


def token_names(input_ids: list[int], tokenizer) -> list[str]:
    """Name each id as a person reads it: markers and placeholders by name, text by the tokenizer's own pieces."""
    return [_NAMES.get(i) or tokenizer.convert_ids_to_tokens(i) for i in input_ids]
