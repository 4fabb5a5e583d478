"""Vectors read by the language model's own tokens: the embeddings nearest to them, and what they would predict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from visllama.inspect.reading import readable
from visllama.model.visllama import VisLlama

NUM_TOKENS = 5
"""Tokens that a vector is read by."""
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")
"""What families of language models call the norm before their output embeddings."""
_VECTORS_AT_ONCE = 256


class TopTokens(NamedTuple):
    """The tokens that vectors are read by, best first.

    Attributes:
        ids: Ids of the tokens.
        scores: Cosines, or probabilities.
    """

    ids: Int[Tensor, "M five"]
    scores: Float[Tensor, "M five"]


class Lens:
    """Read input vectors of a language model by its tokens.

    Args:
        model: The model whose language model reads.

    Attributes:
        embeddings: The input embeddings of all tokens that the tokenizer knows, `(V, D)`.
        can_unembed: Whether the language model has output embeddings, and a norm before them that is known here.

    Reference:
        The unembedding of what is inside a model, "logit lens": nostalgebraist 2020, "interpreting GPT: the logit
        lens".
    """

    @torch.inference_mode()
    def __init__(self, model: VisLlama) -> None:
        self._language_model = model.language_model
        self.tokenizer = model.tokenizer
        module = model.language_model.get_input_embeddings()
        num_tokens = min(module.num_embeddings, len(self.tokenizer))
        # Through the module: some (Gemma 3) scale their embeddings.
        self.embeddings = module(torch.arange(num_tokens, device=module.weight.device)).float()
        self._directions = F.normalize(self.embeddings, dim=-1)
        self._norm = final_norm(model.language_model)
        self._head = model.language_model.get_output_embeddings()

    @property
    def can_unembed(self) -> bool:
        return self._norm is not None and self._head is not None

    @torch.inference_mode()
    def nearest(self, vectors: Float[Tensor, "M D"]) -> TopTokens:
        """Return the tokens whose input embeddings have the largest cosine with each vector."""
        found = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            directions = F.normalize(part.to(self._directions), dim=-1)
            found.append((directions @ self._directions.T).topk(self._num_tokens))
        return _joined(found)

    @torch.inference_mode()
    def unembed(self, vectors: Float[Tensor, "M D"]) -> TopTokens | None:
        """Return the tokens that the language model's last norm and output embeddings make of each vector.

        The scores are the probabilities of these tokens. None where the model has no such norm or output.
        """
        if not self.can_unembed:
            return None
        found = []
        for part in vectors.split(_VECTORS_AT_ONCE):
            logits = self._head(self._norm(part.to(self._head.weight)))
            found.append(logits[:, : len(self.embeddings)].float().softmax(-1).topk(self._num_tokens))
        return _joined(found)

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return tokens as the tokenizer writes them, what cannot be seen written out."""
        return [readable(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    def named(self, top: TopTokens, row: int) -> list[tuple[str, float]]:
        """Return the tokens that one vector is read by, with their scores."""
        scores = [round(score, 4) for score in top.scores[row].tolist()]
        return list(zip(self.names(top.ids[row].tolist()), scores, strict=True))

    @property
    def _num_tokens(self) -> int:
        return min(NUM_TOKENS, len(self.embeddings))


def final_norm(language_model: PreTrainedModel) -> nn.Module | None:
    """Return the norm that a language model applies before its output embeddings; None where none is known."""
    decoder = language_model.get_decoder()
    return next((getattr(decoder, name) for name in FINAL_NORMS if getattr(decoder, name, None) is not None), None)


def _joined(found: list) -> TopTokens:
    ids = torch.cat([top.indices for top in found]).cpu()
    return TopTokens(ids, torch.cat([top.values for top in found]).cpu())
