"""Try what a configuration names, before any weight is loaded: classes, decoding, the optimizer, a loss, a schedule.

Classes are checked on their signatures, and the rest on tiny tensors. torch, transformers and Lightning take seconds to
import: functions import them, after the checks that need none.
"""

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

_BASES = {
    "logger": "lightning.pytorch.loggers.Logger",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "profiler": "lightning.pytorch.profilers.Profiler",
}
"""The class of Lightning's that the classes of each group derive from."""


def check_parts(config: TrainConfig) -> None:
    """Check that this machine has the devices of `trainer`, and that every class the config names takes its arguments.

    The user's packages are imported. Decoding, optimizer, loss and schedule are tried on tiny tensors; no weight is
    loaded.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what is expected.
    """
    plugins = config.plugins
    import_plugins(plugins)
    check_machine(config.trainer)
    lora = config.model.get("lora")
    if lora is not None:
        from visllama.model.lora import lora_config

        # The settings are checked where PEFT's object is made of them.
        lora_config(lora)

    _check_model(config)
    check_decodings(config)
    _check_optimizer(config.optim, plugins)
    if config.loss is not None:
        check_loss(config.loss, plugins)
    schedule = config.optim["schedule"]
    if isinstance(schedule, Mapping):
        check_schedule(schedule, plugins)
    _check_extensions(config)


def _check_extensions(config: TrainConfig) -> None:
    """Check the classes that are handed to Lightning's Trainer: loggers, callbacks, the profiler and the strategy."""
    plugins = config.plugins
    for name, node in config.logger.items():
        _check_kind(f"logger.{name}", node, _BASES["logger"], plugins)
    for name, node in config.callbacks.items():
        _check_kind(f"callbacks.{name}", node, _BASES["callbacks"], plugins)
    if config.profiler is not None:
        _check_kind("profiler", config.profiler, _BASES["profiler"], plugins)

    strategy = config.trainer.strategy
    if isinstance(strategy, Mapping):
        _checked_class("trainer.strategy", strategy, plugins)


def _check_model(config: TrainConfig) -> None:
    """Check that the classes of connector, vision encoder and language model exist and take their arguments."""
    # The connector is the quickest to import: an error in it is shown soonest.
    for role in ("connector", "vision_encoder", "language_model"):
        key = f"model.{role}"
        node = config.model[role]
        target = node["_target_"]
        try:
            cls = class_of_target(role, target, config.plugins)
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from error

        # The widths are those of the encoder and the language model, and come when these are loaded.
        added_later = {"vision_dim", "language_dim"} if role == "connector" else set()
        arguments = _arguments(node)
        check_arguments(key, cls, arguments, added_later)


def check_machine(trainer: TrainerSettings) -> None:
    """Check that this machine has the accelerator and as many devices as the node `trainer` asks for.

    A number of devices on a CPU is not checked, since each is a process there. torch is imported, and nothing computed.

    Raises:
        ConfigError: If something is missing; the message names the key, the value, and what this machine has.
    """
    import torch

    from visllama.machine.devices import find_device

    kind = find_device(trainer.accelerator).type
    devices = trainer.devices
    num_cuda_devices = torch.cuda.device_count()
    if trainer.accelerator in ("gpu", "cuda", "mps"):
        require(
            kind != "cpu",
            f"trainer.accelerator={trainer.accelerator}: torch {torch.__version__} finds no such device here (CUDA "
            f"devices: {num_cuda_devices}): trainer=cpu takes the CPU, trainer.accelerator=auto what there is",
        )

    names_devices = isinstance(devices, list) or devices == -1
    require(
        kind == "cuda" or not names_devices,
        f"trainer.devices={devices}: lists and -1 are for CUDA devices; on {kind} give a number, or auto",
    )

    # A CPU has no number of devices: each rank is a process.
    num_devices = {"cuda": num_cuda_devices, "mps": 1}.get(kind)
    if num_devices is not None and devices != "auto":
        num_needed = max(devices) + 1 if isinstance(devices, list) else devices
        require(
            num_needed <= num_devices,
            f"trainer.devices={devices}: this machine has {num_devices} of them",
        )


def check_decoding(decoding: Mapping[str, Any], key: str = "decoding") -> None:
    """Check settings of transformers' `generate` by writing at most two tokens with a tiny model on the CPU.

    Random states are left as they were.

    Args:
        decoding: The settings, by the names that `generate` gives them, for example {"num_beams": 3}.
        key: The dotted key that the settings stand at, for the message.

    Raises:
        ConfigError: If `generate` refuses a setting or would not write exactly one text for each image, or if
            `custom_generate` or `trust_remote_code` is set, which could run code from elsewhere. The message names the
            setting.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from visllama.model.pretrained import quietly

    for name in ("custom_generate", "trust_remote_code"):
        require(name not in decoding, f"{key}.{name}: code from elsewhere is not run")

    def generate(settings: dict[str, Any]) -> None:
        defaults = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        # Two tokens are enough to fail: the real number would take long.
        short = {"max_new_tokens": min(settings.get("max_new_tokens", 2), 2)}
        ids = model.generate(
            inputs_embeds=torch.zeros(2, 3, 8),
            attention_mask=torch.ones(2, 3, dtype=torch.long),
            **(defaults | settings | short),
        )
        # Some settings return an object in place of a tensor, or several texts an image.
        if not isinstance(ids, torch.Tensor) or len(ids) != 2:
            raise ValueError("must give one text for each image")

    # The user's random state stays as it is: a run draws the same with and without this check.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_config = LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        model = LlamaForCausalLM(tiny_config).eval()
        find_refused(key, generate, dict(decoding))


def check_decodings(config: TrainConfig | EvaluateConfig) -> None:
    """Check the settings of transformers' `generate` in `decoding`, and those that evaluations have of their own.

    An evaluation's own settings are tried on top of those in `decoding`.

    Raises:
        ConfigError: At the first setting that is refused; the message names it.
    """
    check_decoding(config.decoding)
    for name, evaluation in evaluations(config).items():
        own_decoding = evaluation["decoding"]
        if own_decoding:
            merged = config.decoding | own_decoding
            check_decoding(merged, f"evaluation.{name}.decoding")


def _check_optimizer(optim: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Check that the optimizer's class derives from torch's, and can be made with its arguments for one parameter."""
    import torch

    cls = _class_of("optim", optim, plugins)
    require(
        issubclass(cls, torch.optim.Optimizer),
        f"optim._target_={optim['_target_']} is no torch.optim.Optimizer: name a class that derives from it",
    )

    def construct(arguments: dict[str, Any]) -> object:
        number = torch.zeros(1, requires_grad=True)
        return cls([number], **arguments)

    arguments = _arguments(optim)
    for name in OWN_OPTIM_KEYS:
        arguments.pop(name, None)
    try:
        find_refused("optim", construct, arguments)
    except ConfigError as error:
        # visllama sets this one itself, by parameter group: the user cannot leave it out.
        if "unexpected keyword argument 'weight_decay'" in str(error):
            raise ConfigError(f"{error}: an optimizer's constructor takes params, lr and weight_decay") from error
        raise


def check_schedule(schedule: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Check a user's own schedule by calling it at the progress 0.0, 0.5 and 1.0.

    Args:
        schedule: The node `optim.schedule`, with its `_target_` and arguments.
        plugins: The names of the user's packages that a `_target_` may come from.

    Raises:
        ConfigError: If the class does not take its arguments, fails, or returns no finite number of 0 or more.
    """
    cls = _checked_class("optim.schedule", schedule, plugins)
    shape = build(schedule, plugins)
    name = cls.__name__

    for progress in (0.0, 0.5, 1.0):
        try:
            share = shape(progress)
        except Exception as error:  # the user's class may raise any type
            raise ConfigError(f"optim.schedule: {name} fails at {progress}: {error}") from error

        is_share = isinstance(share, (int, float)) and 0 <= share < math.inf
        require(
            is_share,
            f"optim.schedule: {name} returns {share} at {progress}: a schedule is called with how much of the "
            f"steps is done, from 0 to 1, and returns a share of the rate, 0 or more",
        )


def check_loss(loss: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Check a user's own loss by calling it on the logits of three tokens over a vocabulary of 7.

    Args:
        loss: The node `loss`, with its `_target_` and arguments.
        plugins: The names of the user's packages that a `_target_` may come from.

    Raises:
        ConfigError: If the class does not take its arguments, holds parameters or buffers, fails, or does not return
            one finite number for each token.
    """
    import torch

    cls = _checked_class("loss", loss, plugins)
    token_loss = build(loss, plugins)
    name = cls.__name__

    if isinstance(token_loss, torch.nn.Module):
        tensors = [*token_loss.parameters(), *token_loss.buffers()]
        require(
            not tensors,
            f"loss: {name} holds tensors, which are neither trained nor saved: compute them in its forward",
        )

    logits = torch.zeros(3, 7)
    targets = torch.tensor([0, 3, 6])
    try:
        losses = token_loss(logits, targets)
    except Exception as error:  # the user's class may raise any type
        raise ConfigError(f"loss: {name} fails on the logits of three tokens: {error}") from error

    has_shape = isinstance(losses, torch.Tensor) and losses.shape == (3,)
    is_finite = has_shape and bool(torch.isfinite(losses).all())
    returned = getattr(losses, "shape", losses)
    require(
        is_finite,
        f"loss: for logits (3, 7) and targets (3,) {name} returns {returned}: a loss returns a finite number for each "
        f"token, (3,)",
    )


def _check_kind(key: str, node: Mapping[str, Any], base: str, plugins: Sequence[str]) -> None:
    """Check that the class of a node derives from a base class, and takes the node's arguments.

    Args:
        key: The dotted key that the node stands at, for the message.
        node: The node, with its `_target_` and arguments.
        base: The dotted path of the base class.
        plugins: The names of the user's packages that a `_target_` may come from.
    """
    cls = _class_of(key, node, plugins)
    base_class = resolve(base)
    # This comes before the arguments: those of a wrong class help nobody.
    if not issubclass(cls, base_class):
        target = node["_target_"]
        raise ConfigError(f"{key}._target_={target}: does not derive from {base}: name a class that does")
    arguments = _arguments(node)
    check_arguments(key, cls, arguments, added=set())


def _checked_class(key: str, node: Mapping[str, Any], plugins: Sequence[str]) -> type:
    """Return the class of a node, after a check that it takes the node's arguments."""
    cls = _class_of(key, node, plugins)
    arguments = _arguments(node)
    check_arguments(key, cls, arguments, added=set())
    return cls


def _class_of(key: str, node: Mapping[str, Any], plugins: Sequence[str]) -> type:
    """Return the class that a node names; the error message of a wrong name begins with the node's key."""
    try:
        return resolve(node["_target_"], plugins)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a node: all its values but `_target_`."""
    arguments = dict(node)
    arguments.pop("_target_", None)
    return arguments
