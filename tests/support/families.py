"""Small folders in the hub's layout, one a family: what `save_pretrained` writes, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from visllama.model.locate import locate

WIDTH, SIDE_PX, PATCH_PX, VOCABULARY = 32, 48, 16, 480
_VISION = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": SIDE_PX, "patch_size": PATCH_PX,
}  # fmt: skip
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
_LANGUAGE = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 3,
}  # fmt: skip

ENCODERS = {"clip": "CLIPVisionEncoder", "siglip": "SiglipVisionEncoder", "dinov2": "Dinov2VisionEncoder"}
LANGUAGE_MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "mistral": (MistralForCausalLM, MistralConfig, {"tie_word_embeddings": False, "sliding_window": 64}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"tie_word_embeddings": True, "head_dim": 8}),
}


def save_encoder(family: str, folder: Path) -> Path:
    """Write a whole model of the family (CLIP and SigLIP with their text half, as on the hub), and its processor."""
    torch.manual_seed(0)
    square = {"height": SIDE_PX, "width": SIDE_PX}
    if family == "clip":
        config = CLIPConfig(vision_config=_VISION | {"projection_dim": 24}, text_config=_TEXT, projection_dim=24)
        model, processor = CLIPModel(config), CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=square)
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(vision_config=_VISION, text_config=_TEXT))
        processor = SiglipImageProcessorPil(size=square)
    else:
        # As published: trained at another size (so its positions are interpolated), resized larger than it is cropped.
        model = Dinov2Model(Dinov2Config(**(_VISION | {"image_size": 80})))
        processor = BitImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, resample=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_language_model(
    family: str, folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB", **config
) -> Path:
    """Write a language model of the family, and a tokenizer; Qwen's has no BOS, none has padding."""
    torch.manual_seed(0)
    model_class, config_class, own = LANGUAGE_MODELS[family]
    model = model_class(config_class(**(_LANGUAGE | own | config))).to(dtype)
    with torch.no_grad():  # louder than a fresh one, so that what it says depends on what it reads
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    tokenizer.pad_token = None
    if family == "qwen2":
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    return folder
