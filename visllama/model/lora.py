"""LoRA: two small matrices (an *adapter*) beside each of some layers of the frozen language model, made by PEFT.

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
"""The arguments of PEFT's `LoraConfig` that may be set. They shape the adapters. PEFT's other arguments are refused:
they train or rewrite the language model itself, or name code to import."""
_NAME = re.compile(r"[\w.\-]+")
_TARGET_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""The arguments that narrow down which layers `target_modules` means."""


def is_adapter(name: str) -> bool:
    """Return whether a tensor of this name belongs to a LoRA adapter: whether the name contains `.lora_`."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """Return a tensor's name without the `.base_layer` that PEFT puts into the names of layers beside an adapter.

    That is the name of the tensor in the published model; a name without `.base_layer.` is returned unchanged.
    """
    return name.replace(".base_layer.", ".")


def adapters(language_model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Yield each layer of a language model that has an adapter beside it.

    Yields:
        The layer's name in the language model, and PEFT's module, which holds the layer and its adapter.
    """
    for name, module in language_model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def lora_config(arguments: Mapping[str, Any]) -> LoraConfig:
    """Check arguments for LoRA, and return PEFT's `LoraConfig` that is made of them.

    Args:
        arguments: Arguments of `LoraConfig` by PEFT's names, which have to be among `SWITCHES`. `target_modules` is
            required: a list of layers' names, a regular expression, or "all-linear".

    Raises:
        ConfigError: If a name is not among `SWITCHES` or a value is not allowed; the message names the argument.
    """
    for name, value in arguments.items():
        if name not in SWITCHES:
            choices = ", ".join(SWITCHES)
            raise ConfigError(
                f"model.lora.{name}={value}: LoRA takes {choices}; the language model itself is trained by "
                f"stage.trainable=[connector,markers,language_model] and model/lora=none"
            )

    _check_numbers(arguments)

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
        raise ConfigError(f"model.lora: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, which must not be empty."""
    return str(error).splitlines()[0]


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuse a rank, a factor or a dropout that is no number in its range.

    Raises:
        ConfigError: If one is not; the message names the argument.
    """
    rank = arguments.get("r", 8)
    is_rank = matches_hint(rank, int) and rank > 0
    require(is_rank, f"model.lora.r={rank}: must be a whole number, more than 0")

    alpha = arguments.get("lora_alpha", 8)
    is_alpha = matches_hint(alpha, float) and alpha > 0
    require(is_alpha, f"model.lora.lora_alpha={alpha}: must be a number more than 0")

    dropout = arguments.get("lora_dropout", 0.0)
    is_dropout = matches_hint(dropout, float) and 0 <= dropout < 1
    require(is_dropout, f"model.lora.lora_dropout={dropout}: must be in [0, 1)")

    for name in ("rank_pattern", "alpha_pattern"):
        numbers = arguments.get(name) or {}
        are_numbers = isinstance(numbers, Mapping) and all(_is_layer_number(*entry) for entry in numbers.items())
        require(are_numbers, f"model.lora.{name}={numbers}: must be numbers more than 0 by the names of layers")


def _is_layer_number(layer: object, value: Any) -> bool:
    """Return whether an entry of `rank_pattern` or `alpha_pattern` is a positive number under a plain name."""
    return is_plain(layer) and matches_hint(value, float) and value > 0


def _names_targets(targets: Any) -> bool:
    """Return whether a value of `target_modules` is a text that is not empty, or a list of texts that is not empty."""
    if isinstance(targets, str):
        return targets != ""
    if not targets or not matches_hint(targets, list):
        return False
    return all(isinstance(target, str) for target in targets)


def attach_lora(language_model: PreTrainedModel, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """Put new LoRA adapters into a language model, and return the same model, changed in place.

    The adapters change no output until they are trained. They are fp32 at least, also beside weights of half precision.

    Args:
        language_model: The model; if it is on the meta device, the adapters are there too.
        arguments: Arguments of PEFT's `LoraConfig`: r, lora_alpha, lora_dropout, target_modules, use_dora, ...

    Raises:
        ConfigError: If an argument is not allowed (see `lora_config`), if the model has no layer of a target's name
            (the message lists the names that it has), or if a target holds the embeddings.
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
        raise ConfigError(f"model.lora: {_first_line(error)}") from error

    _check_adapted_layers(language_model, targets, leaf_names)

    for name, parameter in language_model.named_parameters():
        if is_adapter(name):
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(dtype)
    return language_model


def _check_adapted_layers(language_model: PreTrainedModel, targets: Any, leaf_names: set[str]) -> None:
    """Refuse targets of which one names no layer, or a layer that holds the embeddings, after adapters were attached.

    Args:
        language_model: The model with the adapters.
        targets: The argument `target_modules`: a list of layers' names, a regular expression, or "all-linear".
        leaf_names: The names that a target may have, for the message.

    Raises:
        ConfigError: If there is such a target, or no adapter at all.
    """
    # PEFT is content with one target that fits; here a misspelt one beside it is an error.
    adapted = [f".{name}" for name, _ in adapters(language_model)]
    listed_targets = [] if isinstance(targets, str) else targets
    missed_targets = []
    for target in listed_targets:
        is_hit = any(name.endswith(f".{target}") for name in adapted)
        if not is_hit:
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


@contextmanager
def as_in(language_model: nn.Module, dtype: torch.dtype) -> Generator[None, None, None]:
    """Replace all parameters of a model by zeros of a dtype inside the `with` block, and put them back after it.

    The zeros have the shapes of the parameters and take no memory. Parameters that the block adds stay as they are.
    `VisLlama.load_base_weights` attaches LoRA inside this block, because PEFT rounds new adapters to the dtype of the
    weights beside them, and stored weights may be of a coarser dtype than the one that is asked for.
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
    """Return whether each text in a value consists of letters, digits, `_`, `.` and `-` alone, as a layer's name does.

    A text with other characters could be a regular expression. Texts are looked for at any depth of lists, tuples and
    mappings, keys included. Other values, as numbers and None, are plain; an empty text is not.
    """
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(is_plain(inner) for inner in value)
    return True


def spelled_out(language_model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return LoRA arguments that attach the same adapters and hold no regular expression, as a new dict.

    Arguments that pass `is_plain` are copied unchanged. In others, `target_modules` becomes the list of the full names
    of all layers with an adapter, and the arguments that choose among layers are left out: `exclude_modules`,
    `layers_to_transform` and `layers_pattern`.

    Args:
        language_model: The model with the adapters.
        arguments: The arguments that `attach_lora` attached them by.
    """
    if is_plain(arguments):
        return dict(arguments)

    explicit = {name: value for name, value in arguments.items() if name not in _TARGET_CHOICES}
    explicit["target_modules"] = [name for name, _ in adapters(language_model)]
    return explicit


def merge_lora(language_model: nn.Module) -> None:
    """Add each adapter to the weights beside it, and remove the adapters: the language model is changed in place."""
    # The list is made first, since the loop replaces modules.
    for name, module in list(adapters(language_model)):
        module.merge()
        language_model.set_submodule(name, module.get_base_layer())
