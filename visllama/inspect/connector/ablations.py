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
"""Of more vectors several are left out at once, so that the work stays within bounds."""


@dataclass(frozen=True)
class Ablation:
    """One change of what the language model reads of a picture.

    Attributes:
        kind: `whole` changes nothing; `shuffled_images` and `blank_images` show another picture, or a gray one;
            `all_frozen` sets each vector to its mean over the pictures; `markers_removed` leaves both markers out. With
            vectors: `removed` leaves these out, `frozen` sets these to their means, `alone` sets all others to theirs.
        vectors: Places of the vectors in the span, counted from 1.
    """

    kind: str
    vectors: tuple[int, ...] = ()

    @property
    def baseline(self) -> str:
        """Return the kind that it is compared with: a vector alone adds to all at their means, others take away."""
        return ALL_FROZEN if self.kind == ALONE else WHOLE

    @property
    def name(self) -> str:
        """Return the ablation in words."""
        words = self.kind.replace("_", " ")
        return f"{place_name(self.vectors)} {words}" if self.vectors else words


def place_name(vectors: Sequence[int]) -> str:
    """Return places as "4", or "9-16"."""
    return str(vectors[0]) if len(vectors) == 1 else f"{vectors[0]}-{vectors[-1]}"


def vector_groups(num_vectors: int, is_grid: bool) -> list[tuple[int, ...]]:
    """Return which vectors are left out together: each by itself, or of more than 40 as many as make 40 groups.

    Args:
        num_vectors: The number of vectors (K).
        is_grid: Whether they are the patches of a square: then the groups are its rows.
    """
    if num_vectors <= _MOST_GROUPS:
        size = 1
    elif is_grid:
        size = math.isqrt(num_vectors)
    else:
        size = -(-num_vectors // _MOST_GROUPS)
    places = range(1, num_vectors + 1)
    return [tuple(places[start : start + size]) for start in range(0, num_vectors, size)]


def list_ablations(groups: Sequence[tuple[int, ...]]) -> list[Ablation]:
    """Return all ablations, the whole first."""
    general = [Ablation(kind) for kind in (WHOLE, SHUFFLED, BLANK, ALL_FROZEN, NO_MARKERS)]
    return general + [Ablation(kind, group) for kind in (REMOVED, FROZEN, ALONE) for group in groups]


def changed_inputs(
    ablation: Ablation, shown: Mapping[str, Float[Tensor, "N K D"]]
) -> tuple[Float[Tensor, "N K D"], Bool[Tensor, " span"] | None]:
    """Return the image vectors under an ablation, and which positions of a span are read (None is all).

    Args:
        ablation: The ablation.
        shown: The image vectors of the pictures (`whole`), of shuffled ones and of blank ones, by those names.
    """
    whole = shown[WHOLE]
    chosen = [place - 1 for place in ablation.vectors]
    kept = torch.ones(whole.shape[1] + 2, dtype=torch.bool)
    if ablation.kind in shown:
        return shown[ablation.kind], None
    if ablation.kind == NO_MARKERS:
        kept[[0, -1]] = False
        return whole, kept
    if ablation.kind == REMOVED:
        kept[[place + 1 for place in chosen]] = False
        return whole, kept

    is_frozen = torch.ones(whole.shape[1], dtype=torch.bool)  # ALL_FROZEN
    if ablation.kind == FROZEN:
        is_frozen[:] = False
        is_frozen[chosen] = True
    elif ablation.kind == ALONE:
        is_frozen[chosen] = False
    return torch.where(is_frozen[:, None], whole.mean(0), whole), None
