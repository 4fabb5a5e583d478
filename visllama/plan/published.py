"""Shapes of the published backbones, for a machine that has not downloaded them: a plan needs no weight."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
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

from visllama.errors import ConfigError
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.locate import locate
from visllama.model.vision_encoder import PretrainedVisionEncoder
from visllama.plugins import part_class

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
    """Return each published language model's config, by its hub id; weights and tokenizer are elsewhere."""
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
    """Return each published vision encoder's config, by its hub id."""
    large = (1024, 4096, 24, 16, 14)
    dinov2 = {name: value for name, value in _vision(*large, 518).items() if name != "intermediate_size"}
    return {
        "openai/clip-vit-large-patch14": CLIPVisionConfig(**_vision(*large, 224), projection_dim=768),
        "openai/clip-vit-large-patch14-336": CLIPVisionConfig(**_vision(*large, 336), projection_dim=768),
        "google/siglip-so400m-patch14-384": SiglipVisionConfig(**_vision(1152, 4304, 27, 16, 14, 384)),
        "facebook/dinov2-large": Dinov2Config(**dinov2, mlp_ratio=4),
    }


def without_downloads(
    parts: Mapping[str, Mapping], plugins: Sequence[str], models: Path | str | None, scratch: Path
) -> dict[str, Mapping]:
    """Return a model's parts with base models of shapes alone, which can be built without having been fetched.

    The config is that of the model's own folder, or of the hub's cache; else it is made of the published shapes. A part
    that is no base model of ours stays as it is.

    Args:
        parts: As `build_model` takes them.
        plugins: The user's packages.
        models: Where downloaded models lie (`paths.models`).
        scratch: An empty folder, in which these are made.

    Raises:
        ConfigError: If a config is nowhere, and no shapes of the model are known.
    """
    made = dict(parts)
    for role, ours, published in (
        ("vision_encoder", PretrainedVisionEncoder, vision_configs()),
        ("language_model", PretrainedLanguageModel, language_configs()),
    ):
        found, arguments = part_class(role, parts[role]["kind"], plugins), parts[role]["arguments"]
        if not issubclass(found, ours):
            continue
        folder = scratch / role
        folder.mkdir()
        try:
            _write_config(arguments, published, models, folder)
        except ConfigError as error:
            raise ConfigError(f"model.{role}.{error}") from error
        if role == "language_model":  # any tokenizer that fits: it is not asked for anything
            for file in Path(locate("visllama:llama")).glob("tokenizer*"):
                shutil.copy(file, folder)
        elif not (folder / _PROCESSOR).is_file():
            _write_processor(found, arguments["path"], folder)
        made[role] = {**parts[role], "arguments": {**arguments, "path": str(folder), "revision": None}}
    return made


def _write_config(
    arguments: Mapping[str, Any], published: Mapping[str, PreTrainedConfig], models: Path | str | None, folder: Path
) -> None:
    path = locate(arguments["path"], models)
    found = Path(path)
    if not found.is_dir():
        cached = try_to_load_from_cache(path, "config.json", revision=arguments.get("revision"))
        if isinstance(cached, str):
            found = Path(cached).parent
        elif path in published:
            published[path].save_pretrained(folder)
        else:
            raise ConfigError(
                f"path={path}: neither a folder (also not under paths.models) nor in the hub's cache, and its shapes "
                f"are not known here (of {', '.join(published)} they are): a folder with its config.json is enough"
            )
    for name in ("config.json", _PROCESSOR):
        if (found / name).is_file():
            shutil.copy(found / name, folder)


def _write_processor(encoder: type[PretrainedVisionEncoder], path: str, folder: Path) -> None:
    size = encoder.config_class.from_pretrained(folder).image_size
    resized, size = _SIDES_PX.get(path, (size, size))
    square = {"height": size, "width": size}
    if encoder.num_class_tokens == 0:  # SigLIP's stretches
        processor = encoder.processor_class(size=square)
    else:
        processor = encoder.processor_class(size={"shortest_edge": resized}, crop_size=square)
    processor.save_pretrained(folder)
