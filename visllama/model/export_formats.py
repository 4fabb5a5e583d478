"""The formats that a trained model can be exported in, and what keeps a model from each."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import nn

from visllama.model.connector import PatchMLPConnector
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.lora import base_name, is_adapter
from visllama.model.vision_encoder import CLIPVisionEncoder
from visllama.model.visllama import VisLlama

_M = TypeVar("_M", bound=nn.Module)


def find_obstacle(model: VisLlama, form: str) -> str | None:
    """Return None if a model can be exported in a format; else a sentence that says why not and which format can.

    Args:
        model: The model; its weights are not read, so that it may be on the meta device.
        form: Name of the format: "llava" is transformers' LLaVA, "adapter" a PEFT folder of LoRA, "language_model" the
            language model with LoRA merged, "hub" visllama's weights with a model card. For the last two, and for an
            unknown name, the result is None.
    """
    if form == "llava":
        return _obstacle_to_llava(model)
    if form == "adapter":
        return _obstacle_to_adapter(model)
    return None


def _obstacle_to_llava(model: VisLlama) -> str | None:
    """Return why transformers' LLaVA cannot hold a model; None if it can.

    LLaVA is a CLIP, two linear layers as wide as the language model with a GELU between, and a language model whose
    embeddings are a plain table.
    """
    others = "format=language_model serves it beside visllama.load(WEIGHTS).embed, format=hub keeps it whole"

    connector = model.connector
    embeddings = model.language_model.get_input_embeddings()
    language_dim = embeddings.embedding_dim
    if not _computes_as(connector, PatchMLPConnector, "forward"):
        return f"LLaVA has no place for a {type(connector).__name__}, only for patch_mlp: {others}"
    if connector.hidden.out_features != language_dim:
        return (
            f"LLaVA's connector is as wide as its language model ({language_dim}), and this one is "
            f"{connector.hidden.out_features} wide (model.connector.hidden_dim): {others}"
        )

    if not _computes_as(model.vision_encoder, CLIPVisionEncoder, "encode"):
        return f"LLaVA has no place for a {type(model.vision_encoder).__name__}, only for CLIP: {others}"

    # A class that derives from ours may load any other model, so the class itself is compared.
    source = model.language_model_source
    if type(source) is not PretrainedLanguageModel:
        return f"LLaVA has no place for a language model of one's own, {type(source).__name__}: {others}"

    # Weights are exported with LoRA merged, under the names without it.
    names = {base_name(name) for name in model.language_model.state_dict() if not is_adapter(name)}
    is_usual = all(name.startswith("model.") or name == "lm_head.weight" for name in names)
    if not is_usual or type(embeddings) is not nn.Embedding:
        kind = type(model.language_model).__name__
        return f"LLaVA has no place for a {kind}, whose embeddings or head are not a plain table: {others}"
    return None


def _computes_as(module: nn.Module, kind: type[_M], method: str) -> TypeGuard[_M]:
    """Return whether a module is of a class, or of a subclass that has not overridden the method `method`.

    FSDP replaces a module's class by one that derives from it, so the method is compared and not the class.
    """
    return isinstance(module, kind) and getattr(type(module), method) is getattr(kind, method)


def _obstacle_to_adapter(model: VisLlama) -> str | None:
    """Return why a PEFT folder of LoRA cannot hold what a model has learned; None if it can."""
    if model.lora is None:
        return (
            "these weights hold no LoRA: format=hub keeps connector and markers, format=language_model the whole model"
        )
    if "language_model" in model.trainable:
        return (
            "the language model itself was trained too, and an adapter fits the published one alone: "
            "format=language_model keeps what both have learned"
        )
    return None
