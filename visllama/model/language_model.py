"""Where the frozen language model comes from: any causal language model that transformers knows."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
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
    """Where a language model comes from: its tokenizer at once, its shapes and its weights when they are asked for."""

    tokenizer: PreTrainedTokenizerBase

    def build(self) -> PreTrainedModel:
        """Make the model on the meta device."""

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Make it with its weights; "auto" leaves them as they are stored, mapped and not copied."""


class PretrainedLanguageModel:
    """A causal language model and its tokenizer, by name: built from its config first, its weights loaded on demand.

    Args:
        path: A folder, a hub id, or `visllama:NAME` (see `visllama.model.locate`).
        revision: Commit of the hub id.

    Attributes:
        tokenizer: With a padding token, invented where it has none.

    Raises:
        ConfigError: If the path holds no causal language model, or a tokenizer that does not fit it: it makes ids that
            have no embedding, or knows no end.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path, self.revision = locate(path), revision
        self.config = read(AutoConfig, self.path, revision)
        if type(self.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(f"path={self.path} holds a {self.config.model_type!r}, which is no causal language model")
        self.tokenizer = self._read_tokenizer()

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; where it has no padding token its end token stands in (padding is masked everywhere)."""
        tokenizer = read(AutoTokenizer, self.path, self.revision)
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"path={self.path}: its tokenizer has no end token (eos_token): no text could ever end")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        num_embeddings, largest = self.config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
        if largest >= num_embeddings:
            raise ConfigError(
                f"path={self.path}: its tokenizer does not fit: it makes ids up to {largest}, and the model has "
                f"{num_embeddings} embeddings; take the tokenizer that the model was trained with"
            )
        return tokenizer

    def build(self) -> PreTrainedModel:
        """Make the model from its config, on the meta device: shapes without memory.

        Raises:
            ConfigError: If the config makes no model.
        """
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        except Exception as error:  # of whatever type transformers raises
            raise ConfigError(f"model.language_model: path={self.path}: its config makes no model: {error}") from error

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Load the published weights; in the dtype that they have on disk ("auto") they stay mapped, not copied."""
        return read(AutoModelForCausalLM, self.path, self.revision, dtype=dtype)


def forget_decoding(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop what the base model's `generation_config` says of decoding, but for the tokens that end and pad.

    `generate` takes from there each setting that a call does not name (a repetition penalty, a temperature): what is
    "greedy" would then differ from one base model to the next, unseen.
    """
    language_model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def norm_in_double(language_model: PreTrainedModel) -> None:
    """Let LLaMA's norms compute in the precision of what they are given."""
    for module in language_model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.__class__ = _DoubleRMSNorm


class _DoubleRMSNorm(nn.Module):
    """LLaMA's norm in the precision of its input.

    transformers' goes through single precision, where a difference in the sixteenth digit (the order in which ranks
    add) can become one in the eighth; what is run in double is run to prove that there is none.
    """

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
