"""Shapes of the published backbones, for a machine that has not downloaded them: a plan needs no weight."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from visllama.config import ConfigError
from visllama.model.vision_encoder import PretrainedVisionEncoder
from visllama.paths import locate

_PROCESSOR = "preprocessor_config.json"
_SIDES_PX = {"facebook/dinov2-large": (256, 224)}
"""What an encoder's processor resizes to and crops, where that is not the side of its config."""


def _llama(hidden: int, ffn: int, layers: int, heads: int, positions: int = 2048, **more: Any) -> PreTrainedConfig:
    return LlamaConfig(**(_language(hidden, ffn, layers, heads, heads, 32000, positions) | more))


def _language(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocabulary: int, positions: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": positions,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _vision(width: int, ffn: int, layers: int, heads: int, patch_px: int, size_px: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "patch_size": patch_px, "image_size": size_px,
    }  # fmt: skip


def language_configs() -> dict[str, PreTrainedConfig]:
    """Give each published language model's config, by its hub id; weights and tokenizer are elsewhere."""
    return {
        "huggyllama/llama-7b": _llama(4096, 11008, 32, 32),
        "huggyllama/llama-13b": _llama(5120, 13824, 40, 40),
        "huggyllama/llama-30b": _llama(6656, 17920, 60, 52),
        "huggyllama/llama-65b": _llama(8192, 22016, 80, 64),
        "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 4096),
        "lmsys/vicuna-7b-v1.5": _llama(4096, 11008, 32, 32, 4096),
        "meta-llama/Meta-Llama-3-8B": _llama(4096, 14336, 32, 32, 8192, num_key_value_heads=8, vocab_size=128256),
        "mistralai/Mistral-7B-v0.1": MistralConfig(**_language(4096, 14336, 32, 32, 8, 32000, 32768)),
        "Qwen/Qwen2.5-7B": Qwen2Config(**_language(3584, 18944, 28, 28, 4, 152064, 131072)),
    }


def vision_configs() -> dict[str, PreTrainedConfig]:
    """Give each published vision encoder's config, by its hub id."""
    large = (1024, 4096, 24, 16, 14)
    dinov2 = {name: value for name, value in _vision(*large, 518).items() if name != "intermediate_size"}
    return {
        "openai/clip-vit-large-patch14": CLIPVisionConfig(**_vision(*large, 224), projection_dim=768),
        "openai/clip-vit-large-patch14-336": CLIPVisionConfig(**_vision(*large, 336), projection_dim=768),
        "google/siglip-so400m-patch14-384": SiglipVisionConfig(**_vision(1152, 4304, 27, 16, 14, 384)),
        "facebook/dinov2-large": Dinov2Config(**dinov2, mlp_ratio=4),
    }


def config_folder(node: Mapping[str, Any], models: Path | str | None, scratch: Path) -> Path:
    """Give a folder with the config of a language model or vision encoder, as a download would lie.

    It is the model's own folder, or what the hub's cache holds; else one made of the published shapes.

    Args:
        node: The part's arguments: `path`, `revision`.
        models: Where downloaded models lie (`paths.models`).
        scratch: An empty folder, in which one may be made.

    Raises:
        ConfigError: If it is nowhere, and no shapes of it are known.
    """
    path = locate(node["path"], models)
    if Path(path).is_dir():
        return Path(path)
    cached = try_to_load_from_cache(path, "config.json", revision=node.get("revision"))
    if isinstance(cached, str):
        return Path(cached).parent
    language, vision = language_configs(), vision_configs()
    if path not in language and path not in vision:
        raise ConfigError(
            f"path={path}: neither a folder (also not under paths.models) nor in the hub's cache, and its shapes are "
            f"not known here (known: {', '.join([*language, *vision])}): a folder with its config.json is enough"
        )
    (language | vision)[path].save_pretrained(scratch)
    return scratch


def with_processor(folder: Path, encoder: type, path: str, scratch: Path) -> Path:
    """Give a folder that holds a processor's config beside the encoder's: made, where there is none.

    Args:
        folder: As `config_folder` gives it.
        encoder: Class of the encoder.
        path: What the encoder is called.
        scratch: A folder, in which one may be made.
    """
    if (folder / _PROCESSOR).is_file() or not issubclass(encoder, PretrainedVisionEncoder):
        return folder
    if folder != scratch:
        shutil.copy(folder / "config.json", scratch)
    resized, size = _SIDES_PX.get(path, (encoder.config_class.from_pretrained(scratch).image_size,) * 2)
    square = {"height": size, "width": size}
    if encoder.num_class_tokens == 0:  # SigLIP's stretches
        processor = encoder.processor_class(size=square)
    else:
        processor = encoder.processor_class(size={"shortest_edge": resized}, crop_size=square)
    processor.save_pretrained(scratch)
    return scratch
