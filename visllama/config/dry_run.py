"""What is tried before any weight is loaded: classes on their signatures, decoding and optimizer on a tiny tensor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from visllama.config.choices import OWN_OPTIM_KEYS
from visllama.config.instantiate import build
from visllama.config.plain import evaluations
from visllama.config.schema import EvaluateConfig, TrainConfig, TrainerSettings
from visllama.errors import ConfigError, require
from visllama.plugins import class_of_target, import_plugins, resolve
from visllama.signatures import check_arguments, find_refused


def check_parts(config: TrainConfig) -> None:
    """Check the arguments of every class that the config names against its signature, and whether this machine has it.

    Raises:
        ConfigError: Naming the key, the value found, and what is expected.
    """
    import_plugins(config.plugins)
    check_machine(config.trainer)
    if config.model.get("lora") is not None:
        from visllama.model.lora import lora_config

        lora_config(config.model["lora"])
    for role in ("connector", "vision_encoder", "language_model"):  # the quick one to import first
        node = config.model[role]
        try:
            found = class_of_target(role, node["_target_"], config.plugins)
        except ConfigError as error:
            raise ConfigError(f"model.{role}.{error}") from error
        added = {"vision_dim", "language_dim"} if role == "connector" else set()
        check_arguments(f"model.{role}", found, _arguments(node), added)
    check_decodings(config)
    _check_optimizer(config.optim, config.plugins)
    if config.loss is not None:
        check_loss(config.loss, config.plugins)
    if isinstance(config.optim["schedule"], Mapping):
        check_schedule(config.optim["schedule"], config.plugins)
    for group, nodes, base in (
        ("logger", config.logger, "lightning.pytorch.loggers.Logger"),
        ("callbacks", config.callbacks, "lightning.pytorch.callbacks.Callback"),
    ):
        for name, node in nodes.items():
            _check_kind(f"{group}.{name}", node, base, config.plugins)
    if config.profiler is not None:
        _check_kind("profiler", config.profiler, "lightning.pytorch.profilers.Profiler", config.plugins)
    if isinstance(config.trainer.strategy, Mapping):
        _checked_class("trainer.strategy", config.trainer.strategy, config.plugins)


def check_machine(trainer: TrainerSettings) -> None:
    """Refuse an accelerator, devices or a precision that this machine does not have.

    Raises:
        ConfigError: Naming the key and what there is.
    """
    import torch

    from visllama.machine.devices import find_device

    kind, devices = find_device(trainer.accelerator).type, trainer.devices
    if trainer.accelerator in ("gpu", "cuda", "mps"):
        require(
            kind != "cpu",
            f"trainer.accelerator={trainer.accelerator}: torch {torch.__version__} finds no such device here (CUDA "
            f"devices: {torch.cuda.device_count()}): trainer=cpu takes the CPU, trainer.accelerator=auto what there is",
        )
    require(
        kind == "cuda" or not (isinstance(devices, list) or devices == -1),
        f"trainer.devices={devices}: lists and -1 are for CUDA devices; on {kind} give a number, or auto",
    )
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    if there is not None and devices != "auto":
        most = max(devices) + 1 if isinstance(devices, list) else devices
        require(most <= there, f"trainer.devices={devices}: this machine has {there} of them")


def check_decoding(decoding: Mapping[str, Any], key: str = "decoding") -> None:
    """Try the settings of `generate`, which stand at `key`, on a language model of one tiny layer.

    Raises:
        ConfigError: Naming the setting that is refused.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from visllama.model.pretrained import quietly

    for name in ("custom_generate", "trust_remote_code"):
        require(name not in decoding, f"{key}.{name}: code from elsewhere is not run")
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
    ones = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)

    def generate(settings: dict[str, Any]) -> None:
        short = {"max_new_tokens": min(settings.get("max_new_tokens", 2), 2)}
        inputs = {"inputs_embeds": torch.zeros(2, 3, 8), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
        fixed = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        ids = model.generate(**inputs, **(fixed | settings | short))
        if not isinstance(ids, torch.Tensor) or len(ids) != 2:
            raise ValueError("must give one text an image")

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM(LlamaConfig(**sizes, **ones)).eval()
        find_refused(key, generate, dict(decoding))


def check_decodings(config: TrainConfig | EvaluateConfig) -> None:
    """Try the settings of `generate` that a verb has, and those that its evaluations have of their own.

    Raises:
        ConfigError: Naming the setting that is refused.
    """
    check_decoding(config.decoding)
    for name, evaluation in evaluations(config).items():
        if evaluation["decoding"]:
            check_decoding(config.decoding | evaluation["decoding"], f"evaluation.{name}.decoding")


def _check_optimizer(optim: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Try the optimizer on one number."""
    import torch

    found = _class_of("optim", optim, plugins)
    require(
        issubclass(found, torch.optim.Optimizer), f"optim._target_={optim['_target_']} is no optimizer of torch's kind"
    )
    arguments = {name: value for name, value in _arguments(optim).items() if name not in OWN_OPTIM_KEYS}
    try:
        find_refused("optim", lambda given: found([torch.zeros(1, requires_grad=True)], **given), arguments)
    except ConfigError as error:
        if "unexpected keyword argument 'weight_decay'" in str(error):
            raise ConfigError(f"{error}: an optimizer's constructor takes params, lr and weight_decay") from error
        raise


def check_schedule(schedule: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Try a schedule of the user's at its beginning, middle and end.

    Raises:
        ConfigError: Naming the class, what it gives, and what a schedule is.
    """
    found = _checked_class("optim.schedule", schedule, plugins)
    shape = build(schedule, plugins)
    for progress in (0.0, 0.5, 1.0):
        try:
            share = shape(progress)
        except Exception as error:  # of whatever type a class of somebody else's raises
            raise ConfigError(f"optim.schedule: {found.__name__} fails at {progress}: {error}") from error
        require(
            isinstance(share, (int, float)) and 0 <= share < math.inf,
            f"optim.schedule: {found.__name__} gives {share} at {progress}: a schedule is called with how much of the "
            f"steps is done, from 0 to 1, and returns a share of the rate, 0 or more",
        )


def check_loss(loss: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Try a loss of the user's on three tokens.

    Raises:
        ConfigError: Naming the class, what it gives, and what a loss is.
    """
    import torch

    found = _checked_class("loss", loss, plugins)
    token_loss = build(loss, plugins)
    if isinstance(token_loss, torch.nn.Module):
        tensors = [*token_loss.parameters(), *token_loss.buffers()]
        require(
            not tensors,
            f"loss: {found.__name__} holds tensors, which are neither trained nor saved: compute them in its forward",
        )
    try:
        losses = token_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    except Exception as error:  # of whatever type a class of somebody else's raises
        raise ConfigError(f"loss: {found.__name__} fails on the logits of three tokens: {error}") from error
    is_loss = isinstance(losses, torch.Tensor) and losses.shape == (3,) and bool(torch.isfinite(losses).all())
    require(
        is_loss,
        f"loss: of logits (3, 7) and targets (3,) {found.__name__} makes {getattr(losses, 'shape', losses)}: a loss "
        f"returns a finite number for each token, (3,)",
    )


def _check_kind(key: str, node: Mapping[str, Any], base: str, plugins: Sequence[str]) -> None:
    """Check that what a node names derives from a class, and takes the arguments that it is given.

    Args:
        key: Where the node stands.
        node: The node.
        base: The path of the class.
        plugins: The user's packages.
    """
    found = _class_of(key, node, plugins)
    if not issubclass(found, resolve(base)):  # before its arguments: those of a wrong class help nobody
        raise ConfigError(f"{key}._target_={node['_target_']}: derives from no {base}: let it derive from that")
    check_arguments(key, found, _arguments(node), set())


def _checked_class(key: str, node: Mapping[str, Any], plugins: Sequence[str]) -> type:
    """Return the class that a node names, once it takes the arguments that stand there."""
    found = _class_of(key, node, plugins)
    check_arguments(key, found, _arguments(node), set())
    return found


def _class_of(key: str, node: Mapping[str, Any], plugins: Sequence[str]) -> type:
    try:
        return resolve(node["_target_"], plugins)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "_target_"}
