"""What each image vector is like over many pictures: how long, how changing, and which tokens it is read by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visllama.inspect.connector.lens import Lens, ScoredTokens, TopTokens
from visllama.inspect.connector.words import ReferenceWords, WordMatch

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class TokenReading:
    """Which tokens a vector is read by over all pictures.

    Attributes:
        tokens: The tokens that are read first most often, with the share of pictures in which each is, most first.
        mean_score: The mean cosine, or probability, of the token that is read first.
        words: How well the first five tokens meet the words of the references.
    """

    tokens: ScoredTokens
    mean_score: float
    words: WordMatch


@dataclass(frozen=True)
class VectorFacts:
    """What one image vector is like over the pictures.

    Attributes:
        vector: The vector's place in the span, counted from 1.
        norm: The mean of its norm.
        varies: The share of its mean square that changes with the picture, in [0, 1]: at 0 the vector is the same for
            all pictures, at 1 its mean is zero.
        nearest: The reading by the nearest input embeddings.
        unembedding: The reading by the unembedding; None where the language model has none that is known.
        mean_nearest: The tokens nearest to its mean over the pictures, with their cosines.
    """

    vector: int
    norm: float
    varies: float
    nearest: TokenReading
    unembedding: TokenReading | None
    mean_nearest: ScoredTokens


@dataclass(frozen=True)
class PictureReading:
    """How the vectors of one picture are read.

    Attributes:
        nearest: For each vector the tokens with the nearest input embeddings, and their cosines.
        unembedding: For each vector the tokens that the unembedding makes of it, and their probabilities; None where
            the language model has no unembedding that is known.
    """

    nearest: list[ScoredTokens]
    unembedding: list[ScoredTokens] | None


class Norms(TypedDict):
    """How long vectors, markers and text embeddings are."""

    quantiles: list[float]
    """The quantiles that are given, the median in the middle."""
    image_vectors: list[float]
    """The quantiles of the norms of all image vectors of all pictures."""
    text_embeddings: list[float]
    """The quantiles of the norms of all text embeddings."""
    boi: float
    """The norm of the marker `[boi]`."""
    eoi: float
    """The norm of the marker `[eoi]`."""


class VectorStudy:
    """Read all vectors of all pictures.

    Args:
        image_embeds: The image vectors of each picture.
        lens: The lens that reads them.
        references: The captions of each picture, in the order of the pictures.
    """

    def __init__(self, image_embeds: Float[Tensor, "N K D"], lens: Lens, references: Sequence[Sequence[str]]) -> None:
        self.lens = lens
        self._vectors = image_embeds.float()
        self._num_pictures, self._num_vectors, _ = image_embeds.shape

        # All vectors of all pictures in one row, picture by picture.
        flat = self._vectors.flatten(0, 1)
        self._nearest = lens.nearest(flat)
        self._unembedded = lens.unembed(flat)
        self._mean_nearest = lens.nearest(self._vectors.mean(0))
        self._references = ReferenceWords(references)

    @cached_property
    def vectors(self) -> list[VectorFacts]:
        """What each vector is like over the pictures."""
        varies = variance_shares(self._vectors)
        norms = self._vectors.norm(dim=-1).mean(0)

        vectors = []
        for k in range(self._num_vectors):
            unembedding = None
            if self._unembedded is not None:
                unembedding = self._reading(self._unembedded, k)
            facts = VectorFacts(
                vector=k + 1,
                norm=norms[k].item(),
                varies=varies[k].item(),
                nearest=self._reading(self._nearest, k),
                unembedding=unembedding,
                mean_nearest=self.lens.named(self._mean_nearest, k),
            )
            vectors.append(facts)
        return vectors

    def picture(self, number: int) -> PictureReading:
        """Return how one picture's vectors are read.

        Args:
            number: The number of the picture, counted from 0.
        """
        # The rows of `flat` that are this picture's.
        rows = range(number * self._num_vectors, (number + 1) * self._num_vectors)
        nearest = [self.lens.named(self._nearest, row) for row in rows]
        if self._unembedded is None:
            return PictureReading(nearest, None)
        return PictureReading(nearest, [self.lens.named(self._unembedded, row) for row in rows])

    def _reading(self, top: TopTokens, k: int) -> TokenReading:
        """Return how the vector at one place of the span is read over all pictures."""
        by_picture = (self._num_pictures, self._num_vectors)
        ids = top.ids.unflatten(0, by_picture)[:, k]
        first_scores = top.scores.unflatten(0, by_picture)[:, k, 0]

        first_ids = Counter(ids[:, 0].tolist())
        # As many tokens as a picture's reading has: the token that is first may be another one in each picture.
        most_common = first_ids.most_common(ids.shape[1])
        names = self.lens.names(token for token, _ in most_common)
        shares = [count / len(ids) for _, count in most_common]

        spoken = [self._spoken(row) for row in ids.tolist()]
        return TokenReading(
            tokens=list(zip(names, shares, strict=True)),
            mean_score=first_scores.mean().item(),
            words=self._references.match(spoken),
        )

    def _spoken(self, ids: Sequence[int]) -> set[str]:
        """Return tokens as words that can be compared with those of the references."""
        # One by one, because the decoder would join tokens to words.
        texts = [cast("str", self.lens.tokenizer.decode([token])) for token in ids]
        return {text.strip().lower() for text in texts}


def variance_shares(vectors: Float[Tensor, "N K D"]) -> Float[Tensor, " K"]:
    """Return for each vector the share of its mean square that is variance over the pictures, in [0, 1]."""
    variance = (vectors - vectors.mean(0)).square().sum(-1).mean(0)
    mean_square = vectors.square().sum(-1).mean(0)
    # A vector of zeros would be divided by zero.
    return variance / mean_square.clamp(min=torch.finfo(vectors.dtype).tiny)


def norm_quantiles(
    image_embeds: Float[Tensor, "N K D"],
    markers: Float[Tensor, "2 D"],
    embeddings: Float[Tensor, "V D"],
) -> Norms:
    """Return how long the vectors, the markers and the text embeddings are: quantiles, and the markers' two norms.

    Args:
        image_embeds: The image vectors of each picture.
        markers: The vectors of `[boi]` and `[eoi]`.
        embeddings: The input embeddings of all tokens.
    """
    boi, eoi = markers.float().norm(dim=-1).tolist()
    return {
        "quantiles": list(QUANTILES),
        "image_vectors": _quantiles(image_embeds.float().norm(dim=-1)),
        "text_embeddings": _quantiles(embeddings.norm(dim=-1)),
        "boi": boi,
        "eoi": eoi,
    }


def _quantiles(norms: Tensor) -> list[float]:
    return np.quantile(norms.cpu().numpy(), QUANTILES).tolist()
