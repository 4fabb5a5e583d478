"""LoRA: low-rank matrices beside the frozen language model's own, by PEFT.

Reference:
    Hu et al. 2021, arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from visllama.errors import ConfigError, require
from visllama.signatures import matches_hint

SWITCHES = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
)
"""The arguments of PEFT's `LoraConfig` that may be set. They shape the adapters; the others train or rewrite the
language model itself, or name code to import."""
_NAME = re.compile(r"[\w.\-]+")
_TARGET_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""The arguments that narrow down which layers `target_modules` means."""


def is_adapter(name: str) -> bool:
    """Return whether this is the name of an adapter's tensor in a language model."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """Return the name that a tensor of the language model has without LoRA."""
    return name.replace(".base_layer.", ".")


def adapters(language_model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Yield the name and the module of each layer that has an adapter beside it."""
    for name, module in language_model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def lora_config(arguments: Mapping[str, Any]) -> LoraConfig:
    """Return PEFT's config after checking its arguments, which have PEFT's names.

    Raises:
        ConfigError: If an argument is unknown, has a wrong value, or would train or change more than adapters that
            change nothing at first.
    """
    for name in arguments:
        if name not in SWITCHES:
            raise ConfigError(
                f"model.lora.{name}={arguments[name]}: LoRA takes {', '.join(SWITCHES)}; the language model itself is "
                f"trained by stage.trainable=[connector,markers,language_model] and model/lora=none"
            )

    rank = arguments.get("r", 8)
    alpha = arguments.get("lora_alpha", 8)
    dropout = arguments.get("lora_dropout", 0.0)
    require(matches_hint(rank, int) and rank > 0, f"model.lora.r={rank}: must be a whole number, more than 0")
    require(matches_hint(alpha, float) and alpha > 0, f"model.lora.lora_alpha={alpha}: must be a number more than 0")
    require(matches_hint(dropout, float) and 0 <= dropout < 1, f"model.lora.lora_dropout={dropout}: must be in [0, 1)")

    for name in ("rank_pattern", "alpha_pattern"):
        numbers = arguments.get(name) or {}
        require(
            isinstance(numbers, Mapping) and all(_is_layer_number(layer, value) for layer, value in numbers.items()),
            f"model.lora.{name}={numbers}: must be numbers more than 0 by the names of layers",
        )

    init = arguments.get("init_lora_weights", True)
    require(
        init is True or init == "gaussian",
        f"model.lora.init_lora_weights={init}: true or gaussian, with which LoRA begins by changing nothing",
    )

    targets = arguments.get("target_modules")
    require(
        _names_targets(targets),
        f"model.lora.target_modules={targets}: give a list as [q_proj, v_proj], a pattern, or all-linear",
    )

    try:
        return LoraConfig(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.lora: {str(error).splitlines()[0]}") from error


def _is_layer_number(layer: object, value: Any) -> bool:
    """Return whether an entry of `rank_pattern` or `alpha_pattern` is a positive number under a plain name."""
    return is_plain(layer) and matches_hint(value, float) and value > 0


def _names_targets(targets: Any) -> bool:
    """Return whether a value of `target_modules` is a pattern, or a list of names, and not empty."""
    if isinstance(targets, str):
        return targets != ""
    if not targets or not matches_hint(targets, list):
        return False
    return all(isinstance(target, str) for target in targets)


def attach_lora(language_model: PreTrainedModel, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """Put adapters into a language model in place, and return the model.

    The adapters change nothing at first. They are fp32, also beside weights of half precision.

    Args:
        language_model: The model; where it is on the meta device, the adapters are there too.
        arguments: Arguments of PEFT's `LoraConfig`: r, lora_alpha, lora_dropout, target_modules, use_dora, ...

    Raises:
        ConfigError: If the model has no layer of a target's name, with the names that there are.
    """
    config = lora_config(arguments)
    targets = arguments["target_modules"]
    leaf_names = set()
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Linear):
            leaf_names.add(name.rpartition(".")[2])

    is_meta = next(language_model.parameters()).is_meta
    try:
        inject_adapter_in_model(config, language_model, low_cpu_mem_usage=is_meta)
    # PEFT raises errors of many types, and a pattern those of `re`.
    except Exception as error:
        if "arget module" in str(error):
            raise _no_target(targets, leaf_names) from error
        raise ConfigError(f"model.lora: {str(error).splitlines()[0]}") from error

    # PEFT is content with one target that fits; here a misspelt one beside it is an error.
    adapted = [f".{name}" for name, _ in adapters(language_model)]
    listed_targets = [] if isinstance(targets, str) else targets
    missed_targets = []
    for target in listed_targets:
        if not any(name.endswith(f".{target}") for name in adapted):
            missed_targets.append(target)
    if missed_targets or not adapted:
        raise _no_target(missed_targets or targets, leaf_names)

    # A head may share its weight with the embeddings, so the weights are compared too.
    embeddings = language_model.get_input_embeddings()
    for name, module in adapters(language_model):
        base = module.get_base_layer()
        if isinstance(base, nn.Embedding) or base.weight is embeddings.weight:
            raise ConfigError(
                f"model.lora.target_modules={targets}: {name} holds the embeddings, and LoRA stands beside other "
                f"layers only: leave it out"
            )

    for name, parameter in language_model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return language_model


@contextmanager
def as_in(language_model: nn.Module, dtype: torch.dtype) -> Generator[None, None, None]:
    """Make weights that are stored in another dtype appear in this one inside the `with` block, without memory for it.

    PEFT rounds new adapters to the dtype of the weights beside them.
    """
    stored = {parameter: parameter.data for parameter in language_model.parameters()}
    for parameter, data in stored.items():
        parameter.data = torch.zeros((), dtype=dtype).expand(data.shape)
    try:
        yield
    finally:
        for parameter, data in stored.items():
            parameter.data = data


def _no_target(targets: object, leaf_names: set[str]) -> ConfigError:
    choices = ", ".join(sorted(leaf_names))
    return ConfigError(f"model.lora.target_modules={targets}: the language model has no such layer: it has {choices}")


def is_plain(value: object) -> bool:
    """Return whether a value among LoRA's arguments holds names and numbers, and nothing that is read as a pattern."""
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(is_plain(inner) for inner in value)
    return True


def spelled_out(language_model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments without patterns that attach the same adapters.

    Where there is a pattern, `target_modules` becomes the full names of the layers that it has matched.

    Args:
        language_model: The model with the adapters.
        arguments: The arguments that the adapters were attached by.
    """
    if is_plain(arguments):
        return dict(arguments)

    explicit = {name: value for name, value in arguments.items() if name not in _TARGET_CHOICES}
    explicit["target_modules"] = [name for name, _ in adapters(language_model)]
    return explicit


def merge_lora(language_model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and remove them from the language model in place."""
    # The list is made first, since the loop replaces modules.
    for name, module in list(adapters(language_model)):
        module.merge()
        language_model.set_submodule(name, module.get_base_layer())
