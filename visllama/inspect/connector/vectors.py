"""What each image vector is like over many pictures: how long, how changing, and which tokens it is read by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visllama.inspect.connector.lens import Lens, TopTokens
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

    tokens: list[tuple[str, float]]
    mean_score: float
    words: WordMatch


@dataclass(frozen=True)
class VectorFacts:
    """What one image vector is like.

    Attributes:
        vector: Its place in the span, counted from 1.
        norm: Its mean norm.
        varies: The share of its mean square that changes with the picture: 0 says the same of all, 1 has no mean.
        nearest: Reading by the nearest input embeddings.
        unembedding: Reading by the unembedding; None where the language model has none that is known.
        mean_nearest: The tokens nearest to its mean over the pictures, with their cosines.
    """

    vector: int
    norm: float
    varies: float
    nearest: TokenReading
    unembedding: TokenReading | None
    mean_nearest: list[tuple[str, float]]


@dataclass(frozen=True)
class PictureReading:
    """How the vectors of one picture are read: for each vector its tokens with their cosines, or probabilities."""

    nearest: list[list[tuple[str, float]]]
    unembedding: list[list[tuple[str, float]]] | None


class VectorStudy:
    """Read all vectors of all pictures.

    Args:
        image_embeds: The vectors.
        lens: What reads them.
        references: Each picture's captions, in the order of the pictures.
    """

    def __init__(self, image_embeds: Float[Tensor, "N K D"], lens: Lens, references: Sequence[Sequence[str]]) -> None:
        self.lens = lens
        self._vectors = image_embeds.float()
        self._num_pictures, self._num_vectors, _ = image_embeds.shape
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
        facts = []
        for k in range(self._num_vectors):
            facts.append(
                VectorFacts(
                    vector=k + 1,
                    norm=norms[k].item(),
                    varies=varies[k].item(),
                    nearest=self._reading(self._nearest, k),
                    unembedding=None if self._unembedded is None else self._reading(self._unembedded, k),
                    mean_nearest=self.lens.named(self._mean_nearest, k),
                )
            )
        return facts

    def picture(self, number: int) -> PictureReading:
        """Return how one picture's vectors are read."""
        rows = range(number * self._num_vectors, (number + 1) * self._num_vectors)
        nearest = [self.lens.named(self._nearest, row) for row in rows]
        if self._unembedded is None:
            return PictureReading(nearest, None)
        return PictureReading(nearest, [self.lens.named(self._unembedded, row) for row in rows])

    def _reading(self, top: TopTokens, k: int) -> TokenReading:
        ids = top.ids.unflatten(0, (self._num_pictures, self._num_vectors))[:, k]
        firsts = Counter(ids[:, 0].tolist()).most_common(ids.shape[1])
        names = self.lens.names(token for token, _ in firsts)
        spoken = [{self._spoken(token) for token in row} for row in ids.tolist()]
        return TokenReading(
            tokens=[(name, count / len(ids)) for name, (_, count) in zip(names, firsts, strict=True)],
            mean_score=top.scores.unflatten(0, (self._num_pictures, self._num_vectors))[:, k, 0].mean().item(),
            words=self._references.match(spoken),
        )

    def _spoken(self, token: int) -> str:
        return self.lens.tokenizer.decode([token]).strip().lower()


def variance_shares(vectors: Float[Tensor, "N K D"]) -> Float[Tensor, " K"]:
    """Return for each vector the share of its mean square that is variance over the pictures, in [0, 1]."""
    changes = (vectors - vectors.mean(0)).square().sum(-1).mean(0)
    return changes / vectors.square().sum(-1).mean(0).clamp(min=torch.finfo(vectors.dtype).tiny)


def norm_quantiles(
    image_embeds: Float[Tensor, "N K D"], markers: Float[Tensor, "2 D"], embeddings: Float[Tensor, "V D"]
) -> Mapping[str, object]:
    """Return how long the vectors, the markers and the text embeddings are: quantiles, and the markers' two norms."""
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
