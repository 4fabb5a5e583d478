"""Shapes of the published backbones, for a plan on a machine that has not downloaded them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

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
"""The sides that an encoder's processor resizes to and crops to, where they are not the side in its config."""


class _LanguageSizes(TypedDict):
    """The sizes of a LLaMA-like model, by the names of transformers' configs."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool


class _VisionSizes(TypedDict):
    """The sizes of a vision encoder, by the names of transformers' configs."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int


def _language(
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    positions: int,
) -> _LanguageSizes:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
    }


def _llama(hidden: int, ffn: int, layers: int, heads: int, positions: int = 2048) -> PreTrainedConfig:
    """Return the config of a LLaMA of the first two generations, with a key for each query."""
    sizes = _language(hidden, ffn, layers, heads, kv_heads=heads, vocabulary=32000, positions=positions)
    return LlamaConfig(**sizes)


def _vision(width: int, layers: int, heads: int, patch_px: int, size_px: int) -> _VisionSizes:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch_px,
        "image_size": size_px,
    }


def language_configs() -> dict[str, PreTrainedConfig]:
    """Return the config of each published language model by its hub id."""
    # Width, width of the MLP, layers, heads; then, for a LLaMA, positions, and for others also heads of keys and values
    # and the vocabulary before them.
    return {
        "huggyllama/llama-7b": _llama(4096, 11008, 32, 32),
        "huggyllama/llama-13b": _llama(5120, 13824, 40, 40),
        "huggyllama/llama-30b": _llama(6656, 17920, 60, 52),
        "huggyllama/llama-65b": _llama(8192, 22016, 80, 64),
        "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 4096),
        "lmsys/vicuna-7b-v1.5": _llama(4096, 11008, 32, 32, 4096),
        "meta-llama/Meta-Llama-3-8B": LlamaConfig(**_language(4096, 14336, 32, 32, 8, 128256, 8192)),
        "mistralai/Mistral-7B-v0.1": MistralConfig(**_language(4096, 14336, 32, 32, 8, 32000, 32768)),
        "Qwen/Qwen2.5-7B": Qwen2Config(**_language(3584, 18944, 28, 28, 4, 152064, 131072)),
    }


def vision_configs() -> dict[str, PreTrainedConfig]:
    """Return the config of each published vision encoder by its hub id."""
    # Width, layers, heads, side of a patch, side of an image.
    return {
        "openai/clip-vit-large-patch14": CLIPVisionConfig(
            **_vision(1024, 24, 16, 14, 224),
            intermediate_size=4096,
            projection_dim=768,
        ),
        "openai/clip-vit-large-patch14-336": CLIPVisionConfig(
            **_vision(1024, 24, 16, 14, 336),
            intermediate_size=4096,
            projection_dim=768,
        ),
        "google/siglip-so400m-patch14-384": SiglipVisionConfig(
            **_vision(1152, 27, 16, 14, 384),
            intermediate_size=4304,
        ),
        # DINOv2 has the MLP's width as a multiple of the hidden states'.
        "facebook/dinov2-large": Dinov2Config(
            **_vision(1024, 24, 16, 14, 518),
            mlp_ratio=4,
        ),
    }


def without_downloads(
    parts: Mapping[str, Mapping],
    plugins: Sequence[str],
    models: Path | str | None,
    scratch: Path,
) -> dict[str, Mapping]:
    """Return a description of a model whose base models are configs alone, which can be built without a download.

    A config is read from the model's own folder or from the hub's cache, or made of the published shapes. A part that
    is no base model of ours stays as it is.

    Args:
        parts: Description of the parts, as `build_model` takes it.
        plugins: The user's packages.
        models: The folder of downloaded models (`paths.models`).
        scratch: An empty folder, in which the configs are written.

    Raises:
        ConfigError: If a model has no config on this machine, and its shapes are not known either.
    """
    replaced = dict(parts)

    encoder_class = part_class("vision_encoder", parts["vision_encoder"]["kind"], plugins)
    if issubclass(encoder_class, PretrainedVisionEncoder):
        folder = _config_folder("vision_encoder", parts, vision_configs(), models, scratch)
        if not (folder / _PROCESSOR).is_file():
            _write_processor(encoder_class, parts["vision_encoder"]["arguments"]["path"], folder)
        replaced["vision_encoder"] = _at(parts["vision_encoder"], folder)

    language_class = part_class("language_model", parts["language_model"]["kind"], plugins)
    if issubclass(language_class, PretrainedLanguageModel):
        folder = _config_folder("language_model", parts, language_configs(), models, scratch)
        # A plan encodes no text, so any tokenizer does whose ids fit.
        for file in Path(locate("visllama:llama")).glob("tokenizer*"):
            shutil.copy(file, folder)
        replaced["language_model"] = _at(parts["language_model"], folder)

    return replaced


def _config_folder(
    role: str,
    parts: Mapping[str, Mapping],
    published: Mapping[str, PreTrainedConfig],
    models: Path | str | None,
    scratch: Path,
) -> Path:
    """Make a folder with the config of a base model, and return it."""
    folder = scratch / role
    folder.mkdir()
    try:
        _write_config(parts[role]["arguments"], published, models, folder)
    except ConfigError as error:
        raise ConfigError(f"model.{role}.{error}") from error
    return folder


def _at(part: Mapping, folder: Path) -> Mapping:
    """Return the description of a part with the path of another folder, which has no revision."""
    arguments = {**part["arguments"], "path": str(folder), "revision": None}
    return {**part, "arguments": arguments}


def _write_config(
    arguments: Mapping[str, Any],
    published: Mapping[str, PreTrainedConfig],
    models: Path | str | None,
    folder: Path,
) -> None:
    """Write a base model's config, and its processor's where there is one, into a folder.

    Raises:
        ConfigError: If the model has no config on this machine, and its shapes are not known either.
    """
    path = locate(arguments["path"], models)
    source = Path(path)
    if not source.is_dir():
        # The cache answers with a path, with None, or with a mark for a file that the hub is known not to have.
        cached = try_to_load_from_cache(path, "config.json", revision=arguments.get("revision"))
        if isinstance(cached, str):
            source = Path(cached).parent
        elif path in published:
            published[path].save_pretrained(folder)
            return
        else:
            raise ConfigError(
                f"path={path}: neither a folder (also not under paths.models) nor in the hub's cache, and its shapes "
                f"are not known here, as are those of {', '.join(published)}: a folder with its config.json is enough"
            )

    for name in ("config.json", _PROCESSOR):
        if (source / name).is_file():
            shutil.copy(source / name, folder)


def _write_processor(encoder: type[PretrainedVisionEncoder], path: str, folder: Path) -> None:
    """Write the processor of a published encoder, from the side of the images in its config."""
    config_px = encoder.config_class.from_pretrained(folder).image_size
    resized_px, cropped_px = _SIDES_PX.get(path, (config_px, config_px))
    square = {"height": cropped_px, "width": cropped_px}

    # SigLIP, which has no class token, stretches images to a square; CLIP and DINOv2 resize the shorter edge and crop.
    if encoder.num_class_tokens == 0:
        processor = encoder.processor_class(size=square)
    else:
        processor = encoder.processor_class(size={"shortest_edge": resized_px}, crop_size=square)
    processor.save_pretrained(folder)
