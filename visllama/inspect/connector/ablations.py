"""What is left out of the image vectors that the language model reads: a vector, the markers, the picture itself.

The pictures are encoded once; each ablation changes their vectors, or leaves positions out, and those behind close up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WHOLE = "whole"
SHUFFLED = "shuffled_images"
BLANK = "blank_images"
ALL_FROZEN = "all_frozen"
NO_MARKERS = "markers_removed"
REMOVED = "removed"
FROZEN = "frozen"
ALONE = "alone"
_MOST_GROUPS = 40
"""Where there are more vectors, several are left out at once: the pictures are captioned three times a group."""


@dataclass(frozen=True)
class Ablation:
    """One change of what the language model reads of a picture.

    Attributes:
        kind: `whole` changes nothing; `shuffled_images` and `blank_images` show another picture, or a gray one;
            `all_frozen` sets each vector to its mean over the pictures; `markers_removed` leaves both markers out.
            Three kinds are of some vectors: `removed` leaves these out, `frozen` sets these to their means, and `alone`
            sets all others to their means.
        vectors: The places of the vectors in the span, counted from 1.
    """

    kind: str
    vectors: tuple[int, ...] = ()

    @property
    def baseline(self) -> str:
        """The kind that it is compared with."""
        # A vector alone adds to all at their means; every other change takes something away from the whole.
        return ALL_FROZEN if self.kind == ALONE else WHOLE

    @property
    def name(self) -> str:
        """The ablation in words."""
        words = self.kind.replace("_", " ")
        if not self.vectors:
            return words
        return f"{place_name(self.vectors)} {words}"


def place_name(vectors: Sequence[int]) -> str:
    """Return the places of neighbouring vectors in the span as "4", or "9-16"."""
    if len(vectors) == 1:
        return str(vectors[0])
    return f"{vectors[0]}-{vectors[-1]}"


def vector_groups(num_vectors: int, is_grid: bool) -> list[tuple[int, ...]]:
    """Return which vectors are left out together: each by itself, or neighbours in at most 40 groups.

    Args:
        num_vectors: The number of vectors (K).
        is_grid: Whether the vectors are the patches of a square. Where there are more than 40, the groups are its rows.
    """
    if num_vectors <= _MOST_GROUPS:
        size = 1
    elif is_grid:
        size = math.isqrt(num_vectors)
    else:
        size = math.ceil(num_vectors / _MOST_GROUPS)

    places = range(1, num_vectors + 1)
    return [tuple(places[start : start + size]) for start in range(0, num_vectors, size)]


def list_ablations(groups: Sequence[tuple[int, ...]]) -> list[Ablation]:
    """Return all ablations, the whole first.

    Args:
        groups: The vectors that are left out together.
    """
    ablations = [Ablation(kind) for kind in (WHOLE, SHUFFLED, BLANK, ALL_FROZEN, NO_MARKERS)]
    for kind in (REMOVED, FROZEN, ALONE):
        ablations += [Ablation(kind, group) for group in groups]
    return ablations


def changed_inputs(
    ablation: Ablation,
    shown: Mapping[str, Float[Tensor, "N K D"]],
) -> tuple[Float[Tensor, "N K D"], Bool[Tensor, " span"] | None]:
    """Return the image vectors under an ablation, and which positions of a span are read (None reads all).

    Args:
        ablation: The ablation.
        shown: The image vectors of the pictures (`whole`), of shuffled ones and of blank ones, by those names.
    """
    if ablation.kind in shown:
        return shown[ablation.kind], None

    # A span is `[boi]`, the K vectors, `[eoi]`: a vector's place, counted from 1, is its position in the span.
    whole = shown[WHOLE]
    num_vectors = whole.shape[1]
    is_read = torch.ones(num_vectors + 2, dtype=torch.bool)
    if ablation.kind == NO_MARKERS:
        is_read[[0, -1]] = False
        return whole, is_read
    if ablation.kind == REMOVED:
        is_read[list(ablation.vectors)] = False
        return whole, is_read

    # What is left is ALL_FROZEN, or one of the two kinds that freeze some vectors.
    chosen = [place - 1 for place in ablation.vectors]
    is_frozen = torch.ones(num_vectors, dtype=torch.bool)
    if ablation.kind == FROZEN:
        is_frozen[:] = False
        is_frozen[chosen] = True
    elif ablation.kind == ALONE:
        is_frozen[chosen] = False
    return torch.where(is_frozen[:, None], whole.mean(0), whole), None
