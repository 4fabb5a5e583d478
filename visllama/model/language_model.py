"""Where the frozen language model comes from: any causal language model that transformers knows."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from visllama.model.pretrained import locate, quietly


class PretrainedLanguageModel:
    """A causal language model and its tokenizer, by name: built from its config first, its weights loaded on demand.

    Args:
        path: A folder, a hub id, or `visllama:NAME` (see `pretrained.locate`).
        revision: Commit of the hub id.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path, self.revision = locate(path), revision
        self.config = AutoConfig.from_pretrained(self.path, revision=revision)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; where it has no padding token its end token stands in (padding is masked everywhere)."""
        tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def build(self) -> PreTrainedModel:
        """Make the model from its config, on the meta device: shapes without memory."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """Load the published weights; in the dtype that they have on disk they stay mapped, not copied."""
        with quietly():
            return AutoModelForCausalLM.from_pretrained(self.path, revision=self.revision, dtype=dtype)
