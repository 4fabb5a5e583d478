"""LoRA: low-rank matrices beside the frozen language model's own, by PEFT.

Reference:
    Hu et al. 2021, arXiv:2106.09685, equation 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from visllama.errors import ConfigError, require
from visllama.signatures import matches_hint

SWITCHES = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
)  # fmt: skip
"""Of PEFT's, those that make adapters: others train or rewrite the language model itself, or name code to import."""
_NAME = re.compile(r"[\w.\-]+")
_CHOOSING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def is_adapter(name: str) -> bool:
    """Return whether a tensor of the language model, by its name, is LoRA's."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """Return the name that a tensor has where there is no LoRA."""
    return name.replace(".base_layer.", ".")


def adapters(language_model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Yield the modules that LoRA stands in for, by name."""
    yield from ((n, m) for n, m in language_model.named_modules() if isinstance(m, BaseTunerLayer))


def lora_config(arguments: Mapping[str, Any]) -> LoraConfig:
    """Make PEFT's config; its arguments go by PEFT's names.

    Raises:
        ConfigError: If one is unknown or wrong, or would train or change more than adapters that begin as nothing.
    """
    for name in arguments:
        if name not in SWITCHES:
            raise ConfigError(
                f"model.lora.{name}={arguments[name]}: LoRA takes {', '.join(SWITCHES)}; the language model itself is "
                f"trained by stage.trainable=[connector,markers,language_model] and model/lora=none"
            )
    rank, alpha, dropout = (
        arguments.get(n, least) for n, least in (("r", 8), ("lora_alpha", 8), ("lora_dropout", 0.0))
    )
    require(matches_hint(rank, int) and rank > 0, f"model.lora.r={rank}: must be a whole number, more than 0")
    require(matches_hint(alpha, float) and alpha > 0, f"model.lora.lora_alpha={alpha}: must be a number more than 0")
    require(matches_hint(dropout, float) and 0 <= dropout < 1, f"model.lora.lora_dropout={dropout}: must be in [0, 1)")
    for name in ("rank_pattern", "alpha_pattern"):
        numbers = arguments.get(name) or {}
        good = isinstance(numbers, Mapping) and all(
            is_plain(k) and matches_hint(v, float) and v > 0 for k, v in numbers.items()
        )
        require(good, f"model.lora.{name}={numbers}: must be numbers more than 0 by the names of layers")
    init, targets = arguments.get("init_lora_weights", True), arguments.get("target_modules")
    require(
        init is True or init == "gaussian",
        f"model.lora.init_lora_weights={init}: true or gaussian, with which LoRA begins by changing nothing",
    )
    require(
        bool(targets)
        and (isinstance(targets, str) or (matches_hint(targets, list) and all(isinstance(t, str) for t in targets))),
        f"model.lora.target_modules={targets}: give a list as [q_proj, v_proj], a pattern, or all-linear",
    )
    try:
        return LoraConfig(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.lora: {str(error).splitlines()[0]}") from error


def attach_lora(language_model: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Put adapters into a language model, in place, and give it back; at first they change nothing.

    They are fp32 beside weights of half precision.

    Args:
        language_model: Whose linear layers are meant; on the meta device the adapters are there too.
        arguments: Of PEFT's `LoraConfig`: r, lora_alpha, lora_dropout, target_modules, use_dora, ...

    Raises:
        ConfigError: If a target is nowhere in it, naming what there is.
    """
    config, targets = lora_config(arguments), arguments["target_modules"]
    linear = sorted({n.rpartition(".")[2] for n, m in language_model.named_modules() if isinstance(m, nn.Linear)})
    is_meta = next(language_model.parameters()).is_meta
    try:
        inject_adapter_in_model(config, language_model, low_cpu_mem_usage=is_meta)
    except Exception as error:  # of many types: PEFT, and the patterns' own
        if "arget module" in str(error):
            raise _no_target(targets, linear) from error
        raise ConfigError(f"model.lora: {str(error).splitlines()[0]}") from error
    found = [f".{name}" for name, _ in adapters(language_model)]
    listed = [] if isinstance(targets, str) else targets
    missed = [target for target in listed if not any(name.endswith(f".{target}") for name in found)]
    if missed or not found:
        raise _no_target(missed or targets, linear)
    embeddings = language_model.get_input_embeddings()
    for name, module in adapters(language_model):
        base = module.get_base_layer()
        if isinstance(base, nn.Embedding) or base.weight is embeddings.weight:
            raise ConfigError(
                f"model.lora.target_modules={targets}: {name} holds the embeddings: LoRA is beside others"
            )
    for name, parameter in language_model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return language_model


@contextmanager
def as_in(language_model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let weights that are stored in another dtype look as in this one, without memory: PEFT rounds adapters to it."""
    stored = {parameter: parameter.data for parameter in language_model.parameters()}
    for parameter, data in stored.items():
        parameter.data = torch.zeros((), dtype=dtype).expand(data.shape)
    try:
        yield
    finally:
        for parameter, data in stored.items():
            parameter.data = data


def _no_target(targets: object, linear: list[str]) -> ConfigError:
    return ConfigError(
        f"model.lora.target_modules={targets}: the language model has no such layer: it has {', '.join(linear)}"
    )


def is_plain(value: object) -> bool:
    """Return whether LoRA's arguments hold names, numbers and nothing that would be read as a pattern."""
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(inner) for key, inner in value.items())
    return all(map(is_plain, value)) if isinstance(value, (list, tuple)) else True


def spelled_out(language_model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that adapters were attached by, each target by its name where a pattern has found them."""
    if is_plain(arguments):
        return dict(arguments)
    kept = {name: value for name, value in arguments.items() if name not in _CHOOSING}
    return kept | {"target_modules": [name for name, _ in adapters(language_model)]}


def merge_lora(language_model: nn.Module) -> None:
    """Add the adapters to the weights they stand beside, and take them out."""
    for name, module in list(adapters(language_model)):
        module.merge()
        language_model.set_submodule(name, module.get_base_layer())
