"""Find the tokens of the language model that a vector stands for: `Lens`.

A vector is read in two ways: by the tokens whose input embeddings are nearest to it, and by the tokens that the model's
last norm and output layer predict from it (the unembedding).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from visllama.inspect.reading import readable
from visllama.model.visllama import VisLlama

NUM_TOKENS = 5
"""The number of best tokens that are kept of each vector; a smaller vocabulary gives fewer."""
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")
"""The names that families of language models give the norm before their output embeddings."""
_VECTORS_AT_ONCE = 256
"""The scores of so many vectors against the whole vocabulary are in memory at once."""
ScoredTokens = list[tuple[str, float]]
"""Pairs of a token, as the tokenizer writes it, and its score (a cosine, probability or share); the best first."""


class TopTokens(NamedTuple):
    """The best tokens of M vectors: one row for each vector, best token first. Both tensors lie in main memory.

    Attributes:
        ids: The ids of the tokens.
        scores: The score of each token: a cosine from `Lens.nearest`, a probability from `Lens.unembed`.
    """

    ids: Int[Tensor, "M five"]
    scores: Float[Tensor, "M five"]


class Lens:
    """Find the tokens that vectors stand for, by the input embeddings or the output layer of a language model.

    Args:
        model: The model whose language model and tokenizer are used.

    Attributes:
        tokenizer: The model's tokenizer.
        embeddings: The input embeddings of all tokens that the tokenizer knows, `(V, D)`, as float32.
        can_unembed: Whether the language model has output embeddings, and a norm before them that is in `FINAL_NORMS`.

    Reference:
        The unembedding of what is inside a model, "logit lens": nostalgebraist 2020, "interpreting GPT: the logit
        lens".
    """

    @torch.inference_mode()
    def __init__(self, model: VisLlama) -> None:
        self.tokenizer = model.tokenizer
        module = cast("nn.Embedding", model.language_model.get_input_embeddings())
        # Models often have more embeddings than tokens, to round their number up.
        num_tokens = min(module.num_embeddings, len(self.tokenizer))
        # Through the module: some (Gemma 3) scale their embeddings.
        ids = torch.arange(num_tokens, device=module.weight.device)
        self.embeddings = module(ids).float()
        # The scalar product of two directions is their cosine.
        self._directions = F.normalize(self.embeddings, dim=-1)

        self._norm = final_norm(model.language_model)
        self._head = model.language_model.get_output_embeddings()

    @property
    def can_unembed(self) -> bool:
        """Whether `unembed` returns tokens; where this is false, it returns None."""
        return self._norm is not None and self._head is not None

    @torch.inference_mode()
    def nearest(self, vectors: Float[Tensor, "M D"]) -> TopTokens:
        """Return for each vector the five tokens whose input embeddings have the largest cosine with it, best first.

        Args:
            vectors: Vectors of any dtype and device, as long as the input embeddings of a token.
        """
        parts = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            directions = F.normalize(part.to(self._directions), dim=-1)
            cosines = directions @ self._directions.T
            parts.append(cosines.topk(self._num_tokens))
        return _joined(parts)

    @torch.inference_mode()
    def unembed(self, vectors: Float[Tensor, "M D"]) -> TopTokens | None:
        """Return for each vector the five tokens that the model's last norm and output layer predict from it.

        The best token comes first; the scores are the probabilities of the tokens.

        Args:
            vectors: Vectors of any dtype and device, as long as the input embeddings of a token.

        Returns:
            The tokens, or None where `can_unembed` is false.
        """
        if self._norm is None or self._head is None:
            return None

        vocabulary_size = len(self.embeddings)
        parts = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            normed = self._norm(part.to(self._head.weight))
            logits = self._head(normed)
            # The head may have more outputs than there are tokens.
            probabilities = logits[:, :vocabulary_size].float().softmax(-1)
            parts.append(probabilities.topk(self._num_tokens))
        return _joined(parts)

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of these ids as the tokenizer writes them, with escapes for signs that cannot be seen.

        The mark of a space before a word (`▁`, `Ġ`) stays.
        """
        tokens = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [readable(token) for token in tokens]

    def named(self, top: TopTokens, row: int) -> ScoredTokens:
        """Return the best tokens of one vector as pairs (token, score), best first; scores have four decimals.

        Args:
            top: The best tokens of several vectors, as `nearest` and `unembed` return them.
            row: The index of the vector in `top`, counted from 0.
        """
        ids = top.ids[row].tolist()
        scores = top.scores[row].tolist()
        rounded_scores = [round(score, 4) for score in scores]
        return list(zip(self.names(ids), rounded_scores, strict=True))

    @property
    def _num_tokens(self) -> int:
        return min(NUM_TOKENS, len(self.embeddings))


def final_norm(language_model: PreTrainedModel) -> nn.Module | None:
    """Return the norm that a language model applies before its output embeddings.

    Returns:
        The first attribute of the decoder that is named in `FINAL_NORMS`; None where it has none of them.
    """
    decoder = language_model.get_decoder()

    # By name, because transformers has no method for it.
    for name in FINAL_NORMS:
        norm = getattr(decoder, name, None)
        if norm is not None:
            return norm
    return None


def _joined(parts: Sequence[torch.return_types.topk]) -> TopTokens:
    """Return the results of several calls of `topk` as one, in main memory."""
    # Together only here: all vectors against all tokens at once would not fit into memory.
    ids = torch.cat([part.indices for part in parts])
    scores = torch.cat([part.values for part in parts])
    return TopTokens(ids.cpu(), scores.cpu())
