"""Vectors read by the language model's own tokens: the embeddings nearest to them, and what they would predict."""

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
"""The number of tokens that a vector is read by."""
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")
"""The names that families of language models give the norm before their output embeddings."""
_VECTORS_AT_ONCE = 256
ScoredTokens = list[tuple[str, float]]
"""Tokens as text, each with its score, the best first."""


class TopTokens(NamedTuple):
    """The tokens that vectors are read by, best first.

    Attributes:
        ids: The ids of the tokens.
        scores: The cosine, or the probability, of each token.
    """

    ids: Int[Tensor, "M five"]
    scores: Float[Tensor, "M five"]


class Lens:
    """Read input vectors of a language model by its tokens.

    Args:
        model: The model whose language model reads.

    Attributes:
        embeddings: The input embeddings of all tokens that the tokenizer knows, `(V, D)`.
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
        """Whether `unembed` has a result."""
        return self._norm is not None and self._head is not None

    @torch.inference_mode()
    def nearest(self, vectors: Float[Tensor, "M D"]) -> TopTokens:
        """Return the tokens whose input embeddings have the largest cosine with each vector."""
        parts = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            directions = F.normalize(part.to(self._directions), dim=-1)
            cosines = directions @ self._directions.T
            parts.append(cosines.topk(self._num_tokens))
        return _joined(parts)

    @torch.inference_mode()
    def unembed(self, vectors: Float[Tensor, "M D"]) -> TopTokens | None:
        """Return the tokens that the language model's last norm and output embeddings make of each vector.

        The scores are the probabilities of these tokens. None where the model has no such norm or output.
        """
        if self._norm is None or self._head is None:
            return None

        parts = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            normed = self._norm(part.to(self._head.weight))
            logits = self._head(normed)
            # The head may have more outputs than there are tokens.
            probabilities = logits[:, : len(self.embeddings)].float().softmax(-1)
            parts.append(probabilities.topk(self._num_tokens))
        return _joined(parts)

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return tokens as the tokenizer writes them, with escapes for what cannot be seen."""
        return [readable(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    def named(self, top: TopTokens, row: int) -> ScoredTokens:
        """Return the tokens that one vector is read by, with their scores."""
        names = self.names(top.ids[row].tolist())
        scores = [round(score, 4) for score in top.scores[row].tolist()]
        return list(zip(names, scores, strict=True))

    @property
    def _num_tokens(self) -> int:
        return min(NUM_TOKENS, len(self.embeddings))


def final_norm(language_model: PreTrainedModel) -> nn.Module | None:
    """Return the norm that a language model applies before its output embeddings; None where none is known."""
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
