"""Configs of published base models, for a plan on a machine that has not downloaded them.

A *base model* is the vision encoder or the language model, as it was published.
"""

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
    """Sizes of a LLaMA-like model, under the names that they have in transformers' configs."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool


class _VisionSizes(TypedDict):
    """Sizes of a vision encoder, under the names that they have in transformers' configs."""

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
    """Return the sizes of a language model as keyword arguments of a transformers config."""
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
    """Return the config of a LLaMA 1 or 2 without grouped queries: it has as many key heads as query heads."""
    sizes = _language(hidden, ffn, layers, heads, kv_heads=heads, vocabulary=32000, positions=positions)
    return LlamaConfig(**sizes)


def _vision(width: int, layers: int, heads: int, patch_px: int, size_px: int) -> _VisionSizes:
    """Return the sizes of a vision encoder as keyword arguments of a transformers config."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch_px,
        "image_size": size_px,
    }


def language_configs() -> dict[str, PreTrainedConfig]:
    """Build a transformers config for each published language model whose sizes are written here.

    Nothing is read from disk or the hub. Widths and numbers of layers, heads, ids and positions are as published; all
    else has transformers' default.

    Returns:
        New configs by hub id: nine models of the LLaMA, Vicuna, Mistral and Qwen families, from 7B to 65B.
    """
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
    """Build a transformers config for each published vision encoder whose sizes are written here.

    Nothing is read from disk or the hub. Widths, numbers of layers and heads, and the sides of patches and images are
    as published; all else has transformers' default.

    Returns:
        New configs by hub id: two CLIPs, a SigLIP and a DINOv2.
    """
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
    """Write the configs of a model's base models into a folder, and return the parts with paths that lead there.

    `build_model` can build the result on the meta device without a download. A config is copied from the base model's
    folder, or else from the hub's cache, or else made of the shapes that are written here. For a language model, the
    tokenizer of visllama's small model stands in. A part whose class does not read a pretrained model of transformers
    is returned unchanged.

    Args:
        parts: Class names and arguments of the model's parts, as `visllama.model.weights.Parts` describes them. It is
            not changed.
        plugins: Names of the user's importable packages, which may define classes of parts. They are imported.
        models: The folder of downloaded base models (`paths.models`); None for none.
        scratch: An empty folder to write to.

    Raises:
        ConfigError: If a class is unknown, or if a base model's config is neither on this machine nor known here.
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
    """Make the folder `scratch/role`, write the config of a base model into it, and return the folder.

    Raises:
        ConfigError: If the config is neither on this machine nor known here.
    """
    folder = scratch / role
    folder.mkdir()
    try:
        _write_config(parts[role]["arguments"], published, models, folder)
    except ConfigError as error:
        raise ConfigError(f"model.{role}.{error}") from error
    return folder


def _at(part: Mapping, folder: Path) -> Mapping:
    """Return a copy of a part's description with `folder` as its path and no revision."""
    arguments = {**part["arguments"], "path": str(folder), "revision": None}
    return {**part, "arguments": arguments}


def _write_config(
    arguments: Mapping[str, Any],
    published: Mapping[str, PreTrainedConfig],
    models: Path | str | None,
    folder: Path,
) -> None:
    """Write a base model's config into a folder, and that of its image processor if it lies beside the config.

    Args:
        arguments: Arguments of the base model, with its `path`.
        published: Configs by hub id, for a model that is not on this machine.
        models: The folder of downloaded base models; None for none.
        folder: The folder to write to.

    Raises:
        ConfigError: If the config is neither on this machine nor in `published`.
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
    """Write the config of an encoder's image processor into the folder that holds the encoder's config.

    Args:
        encoder: Class of the encoder.
        path: The encoder's path in the user's config: for some hub ids, images have another side than in the config.
        folder: The folder to read from and to write to.
    """
    config_px = encoder.config_class.from_pretrained(folder).image_size
    resized_px, cropped_px = _SIDES_PX.get(path, (config_px, config_px))
    square = {"height": cropped_px, "width": cropped_px}

    # SigLIP, which has no class token, stretches images to a square; CLIP and DINOv2 resize the shorter edge and crop.
    if encoder.num_class_tokens == 0:
        processor = encoder.processor_class(size=square)
    else:
        processor = encoder.processor_class(size={"shortest_edge": resized_px}, crop_size=square)
    processor.save_pretrained(folder)
