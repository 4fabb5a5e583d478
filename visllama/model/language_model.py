"""Language models for `VisLlama`: any causal language model that transformers knows, or a class of the user's own."""

from __future__ import annotations

from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from visllama.errors import ConfigError
from visllama.model.locate import locate
from visllama.model.pretrained import read


@runtime_checkable
class LanguageModelSource(Protocol):
    """The interface of an object that can be `VisLlama`'s argument `language_model`.

    Attributes:
        tokenizer: The tokenizer, with an end token and a padding token; the constructor has to set it.
    """

    tokenizer: PreTrainedTokenizerBase

    def build(self) -> PreTrainedModel:
        """Return a new model on the meta device, which has shapes and no weights."""

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Return a new model with its weights.

        Args:
            dtype: Dtype of the weights; "auto" leaves them in the dtype of their files, mapped from disk and not copied
                into memory.
        """


class PretrainedLanguageModel:
    """A causal language model of transformers, for `VisLlama`'s argument `language_model`.

    The constructor reads config and tokenizer; `build()` makes a model without weights and `load()` one with them. A
    hub id that is not in the hub's cache is downloaded.

    Args:
        path: A folder, a hub id (OWNER/NAME), or `visllama:NAME` for a small model that comes with visllama.
        revision: Commit, branch or tag of the hub id; None for its main branch.

    Attributes:
        path: The folder or hub id that is read.
        config: The model's config, as transformers reads it.
        tokenizer: The tokenizer. If it has no padding token, the end token is set in its place.

    Raises:
        ConfigError: If the path cannot be read or holds no causal language model, or if the tokenizer has no end token
            or makes ids for which the model has no embedding.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path = locate(path)
        self.revision = revision
        self.config = read(AutoConfig, self.path, revision)
        if type(self.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(f"path={self.path} holds a {self.config.model_type!r}, which is no causal language model")
        self.tokenizer = self._read_tokenizer()

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer, check that it fits the model, give it a padding token if it has none, and return it.

        Raises:
            ConfigError: If it has no end token, or makes ids that have no embedding.
        """
        tokenizer = read(AutoTokenizer, self.path, self.revision)
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"path={self.path}: its tokenizer has no end token (eos_token): no text could ever end")

        # Padding is masked everywhere, so the end token can stand in for it.
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

        # An id without an embedding would fail only when a text that holds it is embedded.
        num_embeddings = self.config.get_text_config().vocab_size
        largest = max(tokenizer.get_vocab().values())
        if largest >= num_embeddings:
            raise ConfigError(
                f"path={self.path}: its tokenizer does not fit: it makes ids up to {largest}, and the model has "
                f"{num_embeddings} embeddings; take the tokenizer that the model was trained with"
            )
        return tokenizer

    def build(self) -> PreTrainedModel:
        """Build a new model from the config on the meta device: it has shapes and no weights, and takes no memory.

        Raises:
            ConfigError: If transformers cannot build a model from the config.
        """
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        # Each architecture of transformers raises errors of its own types.
        except Exception as error:
            raise ConfigError(f"model.language_model: path={self.path}: its config makes no model: {error}") from error

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Read the published weights, and return a new model that holds them.

        Args:
            dtype: Dtype of the weights; "auto" leaves them in the dtype of their files, mapped from disk and not copied
                into memory.

        Raises:
            ConfigError: If the weights cannot be read.
        """
        return read(AutoModelForCausalLM, self.path, self.revision, dtype=dtype)


def forget_decoding(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace a model's `generation_config`, in place, by one that holds only the ids of three special tokens.

    They are the tokenizer's tokens that begin, end and pad a text. transformers' `generate` takes each setting that a
    call does not name (a temperature, a repetition penalty) from that config, so the published settings of a base model
    would change its texts unnoticed.
    """
    language_model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def input_embeddings(language_model: PreTrainedModel) -> nn.Embedding:
    """Return the model's table of input embeddings: the module itself, no copy."""
    return cast(nn.Embedding, language_model.get_input_embeddings())


def norm_in_double(language_model: PreTrainedModel) -> None:
    """Make all RMSNorms of a LLaMA-like model compute in the dtype of their input, by changing their class in place.

    The norms of transformers compute in fp32, which is too coarse for a model in fp64. Modules whose class is not
    named `...RMSNorm`, or that have no `variance_epsilon`, are left as they are.
    """
    for module in language_model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.__class__ = _DoubleRMSNorm


class _DoubleRMSNorm(nn.Module):
    """LLaMA's norm in the precision of its input.

    The norm of transformers computes in single precision. There, a difference in the sixteenth digit, as it comes from
    the order in which ranks add, can become one in the eighth; a run in double precision has to prove that there is
    none.
    """

    weight: Float[Tensor, " D"]
    variance_epsilon: float

    def forward(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
