"""Where the frozen language model comes from: any causal language model that transformers knows."""

from __future__ import annotations

from typing import Literal, Protocol, cast, runtime_checkable

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
    """Where a language model comes from: the tokenizer at once, the shapes and the weights on demand."""

    tokenizer: PreTrainedTokenizerBase

    def build(self) -> PreTrainedModel:
        """Build the model on the meta device."""

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Build the model with its weights.

        Args:
            dtype: Dtype of the weights; "auto" leaves them as they are stored, mapped and not copied.
        """


class PretrainedLanguageModel:
    """A causal language model of transformers, built from its config first and loaded with its weights on demand.

    Args:
        path: A folder, a hub id, or `visllama:NAME` (see `visllama.model.locate`).
        revision: Commit of the hub id.

    Attributes:
        tokenizer: The tokenizer; where it has no padding token, the end token stands in.

    Raises:
        ConfigError: If the path holds no causal language model, or if the tokenizer makes ids that have no embedding or
            has no end token.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path = locate(path)
        self.revision = revision
        self.config = read(AutoConfig, self.path, revision)
        if type(self.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(f"path={self.path} holds a {self.config.model_type!r}, which is no causal language model")
        self.tokenizer = self._read_tokenizer()

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer after checking that it fits the model."""
        tokenizer = read(AutoTokenizer, self.path, self.revision)
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"path={self.path}: its tokenizer has no end token (eos_token): no text could ever end")

        # Padding is masked everywhere, so the end token can stand in for it.
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

        num_embeddings = self.config.get_text_config().vocab_size
        largest = max(tokenizer.get_vocab().values())
        if largest >= num_embeddings:
            raise ConfigError(
                f"path={self.path}: its tokenizer does not fit: it makes ids up to {largest}, and the model has "
                f"{num_embeddings} embeddings; take the tokenizer that the model was trained with"
            )
        return tokenizer

    def build(self) -> PreTrainedModel:
        """Build the model from its config on the meta device, where its tensors take no memory.

        Raises:
            ConfigError: If the config makes no model.
        """
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        # Each architecture of transformers raises errors of its own types.
        except Exception as error:
            raise ConfigError(f"model.language_model: path={self.path}: its config makes no model: {error}") from error

    def load(self, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
        """Load the published weights.

        Args:
            dtype: Dtype of the weights; with "auto" they keep that of their files, and stay mapped and not copied.
        """
        return read(AutoModelForCausalLM, self.path, self.revision, dtype=dtype)


def forget_decoding(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace the base model's `generation_config` by one that holds only the tokens that begin, end and pad.

    `generate` reads from there each setting that a call does not name (a repetition penalty, a temperature). What
    "greedy" means would then differ from one base model to the next, and nobody would see it.
    """
    language_model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def input_embeddings(language_model: PreTrainedModel) -> nn.Embedding:
    """Return the module that embeds token ids, which transformers declares as any module."""
    return cast(nn.Embedding, language_model.get_input_embeddings())


def norm_in_double(language_model: PreTrainedModel) -> None:
    """Make LLaMA's norms compute in the precision of their input."""
    for module in language_model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.__class__ = _DoubleRMSNorm


class _DoubleRMSNorm(nn.Module):
    """LLaMA's norm in the precision of its input.

    The norm of transformers computes in single precision. There, a difference in the sixteenth digit, as it comes from
    the order in which ranks add, can become one in the eighth; a run in double precision has to prove that there is
    none.
    """

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
