"""Statistics of a connector's image vectors over many pictures: norm, variance, and the tokens nearest to each vector.

A connector makes K image vectors of each picture, which the language model reads in place of text embeddings. A vector
is "read" by tokens: those whose input embeddings have the largest cosine with it, or those that the language model's
output layer predicts from it (the unembedding, see `lens.py`).
"""

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
"""The quantiles of the norms that `norm_quantiles` returns."""


@dataclass(frozen=True)
class TokenReading:
    """The vocabulary tokens that fit one of the K image vectors best, summed up over all pictures.

    Attributes:
        tokens: Up to five pairs of a token and the share of pictures, in [0, 1], in which it is the best token of this
            vector; the largest share first.
        mean_score: The mean over the pictures of the best token's score: a cosine for the nearest input embeddings, a
            probability for the unembedding.
        words: How often the vector's five best tokens in a picture include a word of that picture's reference captions.
    """

    tokens: ScoredTokens
    mean_score: float
    words: WordMatch


@dataclass(frozen=True)
class VectorFacts:
    """The statistics of one of the K image vectors over all pictures.

    Attributes:
        vector: The number of the vector among the K image vectors of a picture, counted from 1.
        norm: The mean over the pictures of the vector's Euclidean norm.
        varies: The share of the vector's mean square that is variance over the pictures, in [0, 1]: at 0 the vector is
            the same for all pictures, at 1 its mean is zero.
        nearest: The tokens whose input embeddings are nearest to the vector.
        unembedding: The tokens that the language model's output layer predicts from the vector; None where
            `Lens.can_unembed` is false.
        mean_nearest: The tokens nearest to the mean of the vector over the pictures, each with its cosine, best first.
    """

    vector: int
    norm: float
    varies: float
    nearest: TokenReading
    unembedding: TokenReading | None
    mean_nearest: ScoredTokens


@dataclass(frozen=True)
class PictureReading:
    """The vocabulary tokens that each image vector of one picture is most similar to.

    Attributes:
        nearest: For each of the K vectors up to five pairs (token, cosine): the tokens with the nearest input
            embeddings, best first.
        unembedding: For each of the K vectors up to five pairs (token, probability): the tokens that the language
            model's output layer predicts from the vector, best first. None where `Lens.can_unembed` is false.
    """

    nearest: list[ScoredTokens]
    unembedding: list[ScoredTokens] | None


class Norms(TypedDict):
    """The Euclidean norms of image vectors, markers and text embeddings."""

    quantiles: list[float]
    """The probabilities of the quantiles below: `QUANTILES`, with the median (0.5) in the middle."""
    image_vectors: list[float]
    """The norms of all image vectors of all pictures, at each of `quantiles`."""
    text_embeddings: list[float]
    """The norms of the input embeddings of all tokens, at each of `quantiles`."""
    boi: float
    """The norm of the vector of `[boi]`, the marker before the image vectors."""
    eoi: float
    """The norm of the vector of `[eoi]`, the marker behind the image vectors."""


class VectorStudy:
    """Find the vocabulary tokens that fit each image vector of each picture best.

    The tokens are found when the object is made; `vectors` and `picture` only look up and sum up the results.

    Args:
        image_embeds: The K image vectors of each of N pictures.
        lens: The lens that finds the tokens of a vector.
        references: The reference captions of each picture, in the order of the pictures; at least two pictures.

    Attributes:
        lens: The lens that was given.
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
        """The statistics of each of the K vectors over all pictures, in the order of the vectors."""
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
        """Return the vocabulary tokens that each of the K image vectors of one picture is most similar to.

        Two kinds of tokens are returned, with scores: those with the nearest input embeddings, by cosine, and those
        that the output layer predicts from the vector, by probability.

        Args:
            number: The picture's index in `image_embeds`, counted from 0.

        Raises:
            IndexError: If there is no such picture.
        """
        # The rows of `flat` that are this picture's.
        first_row = number * self._num_vectors
        rows = range(first_row, first_row + self._num_vectors)

        nearest = [self.lens.named(self._nearest, row) for row in rows]
        if self._unembedded is None:
            return PictureReading(nearest, None)
        unembedding = [self.lens.named(self._unembedded, row) for row in rows]
        return PictureReading(nearest, unembedding)

    def _reading(self, top: TopTokens, k: int) -> TokenReading:
        """Return the tokens of the vector of index `k` (from 0), summed up over all pictures.

        Args:
            top: The best tokens of all vectors of all pictures, picture by picture.
            k: The index of the vector among the K vectors of a picture.
        """
        by_picture = (self._num_pictures, self._num_vectors)
        ids = top.ids.unflatten(0, by_picture)[:, k]
        first_scores = top.scores.unflatten(0, by_picture)[:, k, 0]

        num_pictures, num_tokens = ids.shape
        first_ids = Counter(ids[:, 0].tolist())
        # As many tokens as a picture's reading has: the token that is first may be another one in each picture.
        most_common = first_ids.most_common(num_tokens)
        names = self.lens.names(token for token, _ in most_common)
        shares = [count / num_pictures for _, count in most_common]

        spoken = [self._spoken(row) for row in ids.tolist()]
        return TokenReading(
            tokens=list(zip(names, shares, strict=True)),
            mean_score=first_scores.mean().item(),
            words=self._references.match(spoken),
        )

    def _spoken(self, ids: Sequence[int]) -> set[str]:
        """Return the texts of these token ids, in small letters and without spaces around them."""
        # One by one, because the decoder would join tokens to words.
        texts = [cast("str", self.lens.tokenizer.decode([token])) for token in ids]
        return {text.strip().lower() for text in texts}


def variance_shares(vectors: Float[Tensor, "N K D"]) -> Float[Tensor, " K"]:
    """Return for each of the K vectors the share of its mean square that is variance over the N pictures, in [0, 1].

    A vector that is the same in all pictures, also one of zeros, has 0.
    """
    # Variance and mean square are summed over the D components: the share is of the vector as a whole.
    mean = vectors.mean(0)
    variance = (vectors - mean).square().sum(-1).mean(0)
    mean_square = vectors.square().sum(-1).mean(0)
    # A vector of zeros would be divided by zero.
    smallest = torch.finfo(vectors.dtype).tiny
    return variance / mean_square.clamp(min=smallest)


def norm_quantiles(
    image_embeds: Float[Tensor, "N K D"],
    markers: Float[Tensor, "2 D"],
    embeddings: Float[Tensor, "V D"],
) -> Norms:
    """Return the Euclidean norms of image vectors and text embeddings as quantiles, and the norms of the two markers.

    Args:
        image_embeds: The K image vectors of each of N pictures.
        markers: The vector of `[boi]`, then that of `[eoi]`.
        embeddings: The input embeddings of all V tokens, as `Lens.embeddings` holds them.
    """
    norms_of_images = image_embeds.float().norm(dim=-1)
    norms_of_text = embeddings.norm(dim=-1)
    boi, eoi = markers.float().norm(dim=-1).tolist()
    return {
        "quantiles": list(QUANTILES),
        "image_vectors": _quantiles(norms_of_images),
        "text_embeddings": _quantiles(norms_of_text),
        "boi": boi,
        "eoi": eoi,
    }


def _quantiles(norms: Float[Tensor, "*_"]) -> list[float]:
    in_main_memory = norms.cpu().numpy()
    return np.quantile(in_main_memory, QUANTILES).tolist()
