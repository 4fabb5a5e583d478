"""List the ablations of a connector, and apply one to the image vectors that the language model reads.

An ablation takes something away (a vector, the markers, the picture itself): the captions that are written then show
what it is worth. The language model reads a picture as an image span: the marker `[boi]`, the K image vectors that
the connector makes of the picture, and the marker `[eoi]`. The pictures are encoded once; each ablation then changes
their vectors, or leaves positions of the span out, and the positions behind move up.
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
"""Where there are more vectors, several are left out together: the pictures are captioned three times a group."""


@dataclass(frozen=True)
class Ablation:
    """One change of what the language model reads of a picture.

    Attributes:
        kind: `whole` changes nothing; `shuffled_images` and `blank_images` show another picture, or a gray one;
            `all_frozen` sets each vector to its mean over the pictures; `markers_removed` leaves both markers out.
            Three kinds change only some of the K image vectors: `removed` leaves `vectors` out, `frozen` sets `vectors`
            to their means, and `alone` sets all but `vectors` to their means.
        vectors: The numbers of these vectors among the K image vectors, counted from 1; empty for the other five kinds.
    """

    kind: str
    vectors: tuple[int, ...] = ()

    @property
    def baseline(self) -> str:
        """The kind of the ablation that this one is compared with: `all_frozen` for `alone`, otherwise `whole`."""
        # A vector alone adds to all at their means; every other change takes something away from the whole.
        return ALL_FROZEN if self.kind == ALONE else WHOLE

    @property
    def name(self) -> str:
        """The kind with spaces for underscores, after the numbers of the vectors if it has some: "9-16 removed"."""
        words = self.kind.replace("_", " ")
        if not self.vectors:
            return words
        return f"{place_name(self.vectors)} {words}"


def place_name(vectors: Sequence[int]) -> str:
    """Return the numbers of neighbouring vectors as a text: "4" for `(4,)`, "9-16" for `(9, 10, ..., 16)`."""
    first = vectors[0]
    last = vectors[-1]
    return f"{first}" if len(vectors) == 1 else f"{first}-{last}"


def vector_groups(num_vectors: int, is_grid: bool) -> list[tuple[int, ...]]:
    """Return the groups of vectors that are left out together, as tuples of their numbers, which count from 1.

    Up to 40 vectors, each is a group by itself. Of more vectors, neighbours form a group.

    Args:
        num_vectors: The number of image vectors of a picture (K).
        is_grid: Whether the vectors are the patches of a square picture, row by row. Each row is then a group where
            there are more than 40 vectors; vectors of no grid form at most 40 groups.
    """
    if num_vectors <= _MOST_GROUPS:
        size = 1
    elif is_grid:
        size = math.isqrt(num_vectors)
    else:
        size = math.ceil(num_vectors / _MOST_GROUPS)

    places = range(1, num_vectors + 1)
    groups = []
    for start in range(0, num_vectors, size):
        group = places[start : start + size]
        groups.append(tuple(group))
    return groups


def list_ablations(groups: Sequence[tuple[int, ...]]) -> list[Ablation]:
    """Return all ablations, first the five kinds that concern no single vector, beginning with `whole`.

    After them come each group of vectors removed, then each group frozen, then each group alone.

    Args:
        groups: The vectors that are left out together, as `vector_groups` returns them.
    """
    ablations = [Ablation(kind) for kind in (WHOLE, SHUFFLED, BLANK, ALL_FROZEN, NO_MARKERS)]
    for kind in (REMOVED, FROZEN, ALONE):
        ablations += [Ablation(kind, group) for group in groups]
    return ablations


def changed_inputs(
    ablation: Ablation,
    shown: Mapping[str, Float[Tensor, "N K D"]],
) -> tuple[Float[Tensor, "N K D"], Bool[Tensor, " span"] | None]:
    """Return the image vectors that the language model reads under an ablation, and which positions of a span it reads.

    Args:
        ablation: The ablation.
        shown: The K image vectors of each of N pictures, by kind: those of the picture itself under `whole`, those of
            another picture in its place under `shuffled_images`, and those of a gray one under `blank_images`.

    Returns:
        The vectors of the N pictures, and a mask over the K + 2 positions of a span (`[boi]`, the vectors, `[eoi]`)
        that is true where the position is read; None instead of the mask where all are read.
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
    indices = [place - 1 for place in ablation.vectors]
    is_frozen = torch.ones(num_vectors, dtype=torch.bool)
    if ablation.kind == FROZEN:
        is_frozen[:] = False
        is_frozen[indices] = True
    elif ablation.kind == ALONE:
        is_frozen[indices] = False

    # The mean is one set of vectors, which stands in for those of each picture.
    return torch.where(is_frozen[:, None], whole.mean(0), whole), None
