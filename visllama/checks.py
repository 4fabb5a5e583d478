"""What is refused before any weight is loaded: contradictions, wrong types and ranges, files that are not there.

`check_train` needs nothing heavy and comes first; `check_parts` imports the classes that the config names, and tries
what it can on a tiny tensor.
"""

from __future__ import annotations

import inspect
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

from visllama.config import ConfigError
from visllama.plugins import check_targets, class_of_target, import_plugins

ROLES = ("vision_encoder", "connector", "language_model")
TRAINABLE_PARTS = ("connector", "markers", "language_model", "vision_encoder", "adapter")
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
CONTROLS = ("shuffled_images", "blank_images")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
SCHEDULES = ("cosine", "linear", "constant")
SPLITS = ("train", "val", "test")
MOST_THREADS = 1024
_OPTIM_TYPES = {
    "lr": float, "weight_decay": float, "schedule": str, "warmup_fraction": float, "clip_norm": float | None,
    "lr_by_part": Mapping,
}  # fmt: skip
_ADDED_BY_US = {"connector": {"vision_dim", "language_dim"}, "source": {"split"}}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _choose(key: str, value: object, options: Sequence[str]) -> None:
    text = str(value)
    by_lower = {option.lower(): option for option in options}
    close = [option for option in options if text and option.startswith(text)]
    close = close or [by_lower[lower] for lower in get_close_matches(text.lower(), by_lower, 2)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    _require(value in options, f"{key}={value}: {meant}choose {', '.join(options[:-1])} or {options[-1]}")


def check_train(cfg: DictConfig) -> None:
    """Refuse contradictions before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    _require(not missing, f"no value for {', '.join(missing)}: give it as {missing[0] if missing else ''}=VALUE")
    _check_known(cfg)
    _check_nodes(cfg)
    _check_run(cfg)
    _require(0 <= cfg.seed < 2**32, f"seed={cfg.seed}: must be 0 or more, and less than 2**32")
    stage = cfg.stage
    for name in stage.trainable:
        _require(name in TRAINABLE_PARTS, f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}")
        _require(name != "adapter", "stage.trainable names 'adapter', but the model has no LoRA: this version trains "
                 "stage=pretrain only")  # fmt: skip
    _require(len(stage.trainable) > 0, "stage.trainable=[] trains nothing: name at least the connector")
    _require(len(cfg.data.sources) > 0, "data.sources={} holds no data: choose one, as data=scenes")
    for key, value in (("stage.global_batch_size", stage.global_batch_size), ("micro_batch_size", cfg.micro_batch_size),
                       ("stage.epochs", stage.epochs), ("stage.max_text_tokens", stage.max_text_tokens)):  # fmt: skip
        _require(0 < value < math.inf, f"{key}={value}: must be more than 0, and finite")
    workers, val = cfg.data.num_workers, cfg.data.num_val_records
    _require(workers >= 0, f"data.num_workers={workers}: must be 0 or more")
    _require(val is None or val > 0, f"data.num_val_records={val}: must be more than 0, or null for all")
    _check_optim(cfg.optim, stage.trainable)


def check_caption(cfg: DictConfig) -> None:
    """Refuse what `caption` cannot do, before any weight is loaded.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    for key in ("weights", "images"):
        _require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give weights=RUN/weights images=PATH")
    _check_known(cfg)
    _require(Path(cfg.weights).exists(), f"weights={cfg.weights}: no such folder")
    _require(cfg.batch_size > 0, f"batch_size={cfg.batch_size}: must be more than 0")
    _check_run(cfg)
    check_decoding(cfg.decoding)
    check_machine(cfg.trainer)


def check_evaluate(cfg: DictConfig) -> None:
    """Refuse a call that says neither, or both, of what to judge.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    _check_known(cfg)
    given = [key for key in ("weights", "predictions") if cfg[key]]
    _require(len(given) == 1, "give one of weights=RUN/weights and predictions=FILE (with references=FILE); "
             f"found {' and '.join(given) or 'neither'}")  # fmt: skip
    if cfg.predictions:
        _require(cfg.references is not None, "references=FILE is missing: captions are scored against references")
    for key in ("predictions", "references") if cfg.predictions else ("weights",):
        _require(Path(cfg[key]).exists(), f"{key}={cfg[key]}: no such file or folder")
    _check_run(cfg)
    if cfg.weights:
        check_decoding(cfg.decoding)
        check_machine(cfg.trainer)


def _check_known(node: DictConfig, prefix: str = "") -> None:
    """Refuse keys that `+` added where every key is known: nothing would read them."""
    fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", None)
    for name in node:
        if fields is not None:
            close = [f"{prefix}{field}" for field in get_close_matches(name, fields, 1)]
            meant = (
                f"Did you mean {close[0]}?" if close else f"Here are {', '.join(prefix + field for field in fields)}"
            )
            _require(name in fields, f"{prefix}{name}: there is no such key, and nothing would read it. {meant}")
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_interpolation():
            _check_known(child, f"{prefix}{name}.")


def _check_run(cfg: DictConfig) -> None:
    """Check what several verbs have: trainer, evaluations, decoding."""
    trainer = cfg.trainer
    _choose("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    _choose("trainer.precision", trainer.precision, PRECISIONS)
    devices = trainer.devices
    counted = _fits(devices, int) and (devices > 0 or devices == -1)
    _require(
        counted or devices == "auto" or isinstance(devices, ListConfig),
        f"trainer.devices={devices}: give a number of devices, a list of their indices, or auto",
    )
    for name in ("num_nodes", "log_every_steps", "threads"):
        _require(trainer[name] > 0, f"trainer.{name}={trainer[name]}: must be more than 0")
    _require(trainer.threads <= MOST_THREADS, f"trainer.threads={trainer.threads}: must be at most {MOST_THREADS}")
    steps, fraction = trainer.max_steps, trainer.val_fraction
    _require(steps is None or steps > 0, f"trainer.max_steps={steps}: must be more than 0, or null")
    _require(fraction is None or 0 < fraction <= 1, f"trainer.val_fraction={fraction}: must be in (0, 1], or null")
    for name, evaluation in cfg.get("evaluation", {}).items():
        key = f"evaluation.{name}"
        _require(evaluation.task == "caption", f"{key}.task={evaluation.task}: this version judges task=caption")
        _choose(f"{key}.split", evaluation.split, SPLITS)
        for metric in evaluation.metrics:
            _choose(f"{key}.metrics", metric, METRICS)
        for control in evaluation.controls:
            _choose(f"{key}.controls", control, CONTROLS)
    for key, value in _leaves(OmegaConf.to_container(cfg), ("model", "data", "evaluation", "decoding")):
        _check_count(key, value)


def _check_nodes(cfg: DictConfig) -> None:
    """Check that what an option of a group fills in is there, where a value was typed in its place."""
    for name in cfg.model:
        _require(name in ROLES, f"model.{name}: a model's parts are {', '.join(ROLES)}")
    nodes = [(f"model.{role}", f"model/{role}", cfg.model.get(role)) for role in ROLES]
    nodes += [(f"data.sources.{name}", "data", node) for name, node in cfg.data.sources.items()]
    nodes += [(f"evaluation.{name}.source", "evaluation", e.source) for name, e in cfg.evaluation.items()]
    nodes += [("optim", "optim", cfg.optim), ("logger", "logger", cfg.logger)]
    if cfg.trainer.strategy != "auto":
        nodes.append(("trainer.strategy", "trainer/strategy", cfg.trainer.strategy))
    for key, group, node in nodes:
        if not isinstance(node, DictConfig) or "_target_" not in node:
            option = node if isinstance(node, str) else "OPTION"
            how = "an option of a group is chosen with slashes: " if "/" in group else "choose an option of a group: "
            _require(False, f"{key}={node}: {how}{group}={option}")
        try:
            check_targets(OmegaConf.to_container(node), cfg.plugins)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_optim(optim: DictConfig, trainable: Sequence[str]) -> None:
    for name, hint in _OPTIM_TYPES.items():
        _require(name in optim, f"no value for optim.{name}: give it as optim.{name}=VALUE")
        _require(_fits(optim[name], hint), _wrong_type(f"optim.{name}", optim[name], hint))
    _require(0 < optim.lr < math.inf, f"optim.lr={optim.lr}: must be more than 0, and finite")
    _choose("optim.schedule", optim.schedule, SCHEDULES)
    _require(0 <= optim.warmup_fraction < 1, f"optim.warmup_fraction={optim.warmup_fraction}: must be in [0, 1)")
    norm, decay = optim.clip_norm, optim.weight_decay
    _require(norm is None or norm > 0, f"optim.clip_norm={norm}: must be more than 0, or null")
    _require(decay >= 0, f"optim.weight_decay={decay}: must be 0 or more")
    for part, lr in optim.lr_by_part.items():
        _require(
            lr is None or (_fits(lr, float) and lr > 0),
            f"optim.lr_by_part.{part}={lr}: must be a number more than 0, or null",
        )
        _require(
            lr is None or part in trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(trainable)}",
        )


# ------------------------------------------------------------------------------------------------- classes and types


def check_parts(cfg: DictConfig) -> None:
    """Check the arguments of every class that the config names against its signature, and whether this machine has it.

    Raises:
        ConfigError: Naming the key, the value found, and what is expected.
    """
    import_plugins(cfg.plugins)
    check_machine(cfg.trainer)
    plain = OmegaConf.to_container(cfg, resolve=True)
    nodes = [(f"model.{role}", role, node) for role, node in plain["model"].items()]
    nodes += [(f"data.sources.{name}", "source", node) for name, node in plain["data"]["sources"].items()]
    nodes += [(f"evaluation.{name}.source", "source", e["source"]) for name, e in plain["evaluation"].items()]
    for key, role, node in nodes:
        try:
            found = class_of_target(role, node["_target_"], cfg.plugins)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        _check_arguments(key, found, _arguments(node), _ADDED_BY_US.get(role, set()))
    check_decoding(plain["decoding"])
    _check_optimizer(plain["optim"])
    for key, node in (("logger", plain["logger"]), ("trainer.strategy", plain["trainer"]["strategy"])):
        if isinstance(node, dict):
            _check_arguments(key, _class_of(key, node), _arguments(node), set())


def check_machine(trainer: DictConfig) -> None:
    """Refuse an accelerator, devices or a precision that this machine does not have.

    Raises:
        ConfigError: Naming the key and what there is.
    """
    import torch

    from visllama.hardware import find_device

    kind, devices = find_device(trainer.accelerator).type, trainer.devices
    if trainer.accelerator in ("gpu", "cuda", "mps"):
        _require(
            kind != "cpu",
            f"trainer.accelerator={trainer.accelerator}: torch {torch.__version__} finds no such device here (CUDA "
            f"devices: {torch.cuda.device_count()}): trainer=cpu takes the CPU, trainer.accelerator=auto what there is",
        )
    if isinstance(devices, ListConfig):
        _require(kind == "cuda", f"trainer.devices={devices}: a list chooses CUDA devices; of a {kind} give a number")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    if there is not None and devices != "auto":
        most = max(devices) + 1 if isinstance(devices, ListConfig) else devices
        _require(most <= there, f"trainer.devices={devices}: this machine has {there} of them")
    _require(
        (kind, trainer.precision) != ("cpu", "16-mixed"),
        "trainer.precision=16-mixed: not on the CPU; it has bf16-mixed and 32-true",
    )


def check_decoding(decoding: Mapping[str, Any]) -> None:
    """Try the settings of `generate` on a language model of one tiny layer.

    Raises:
        ConfigError: Naming the setting that is refused.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from visllama.model.pretrained import quietly

    for name in ("custom_generate", "trust_remote_code"):
        _require(name not in decoding, f"decoding.{name}: code from elsewhere is not run")
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
    ones = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)

    def generate(settings: dict[str, Any]) -> None:
        short = {"max_new_tokens": min(settings.get("max_new_tokens", 2), 2)}
        inputs = {"inputs_embeds": torch.zeros(2, 3, 8), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
        fixed = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        ids = model.generate(**inputs, **(fixed | settings | short))
        if not isinstance(ids, torch.Tensor) or len(ids) != 2:
            raise ValueError("must give one text an image")

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly(), warnings.catch_warnings(action="ignore"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, **ones)).eval()
        _try("decoding", generate, dict(decoding))


def _check_optimizer(optim: Mapping[str, Any]) -> None:
    """Try the optimizer on one number."""
    import torch

    found = _class_of("optim", optim)
    _require(
        issubclass(found, torch.optim.Optimizer), f"optim._target_={optim['_target_']} is no optimizer of torch's kind"
    )
    ours = _OPTIM_TYPES.keys() - {"lr", "weight_decay"}
    arguments = {name: value for name, value in _arguments(optim).items() if name not in ours}
    _try("optim", lambda given: found([torch.zeros(1, requires_grad=True)], **given), arguments)


def _try(key: str, make: Callable[[dict[str, Any]], object], given: dict[str, Any]) -> None:
    """Make something as the run will; where that fails, find the argument without which it does not."""

    def fails(arguments: dict[str, Any]) -> Exception | None:
        try:
            make(arguments)
        except Exception as error:  # of whatever type a class of somebody else's raises
            return error
        return None

    error = fails(given)
    if error is None:
        return
    refused = [name for name in given if not fails({k: v for k, v in given.items() if k != name})]
    named = " with ".join(f"{key}.{name}={given[name]}" for name in refused or given)
    raise ConfigError(f"{named}: {str(error).splitlines()[0]}") from error


def _class_of(key: str, node: Mapping[str, Any]) -> type:
    try:
        return get_class(node["_target_"])
    except Exception as error:  # Hydra's own classes of error differ by what is missing
        raise ConfigError(f"{key}._target_={node['_target_']}: {str(error).splitlines()[0]}") from error


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "_target_"}


def _check_arguments(key: str, found: type, given: Mapping[str, Any], added: set[str]) -> None:
    signature = inspect.signature(found)
    try:
        signature.bind(**given, **dict.fromkeys(added))
    except TypeError as error:
        takes = ", ".join(name for name in signature.parameters if name not in added)
        raise ConfigError(f"{key}: {error}; {found.__name__} takes {takes}") from error
    try:
        hints = get_type_hints(found.__init__)
    except NameError:  # a class of somebody's own, with hints that do not resolve
        return
    for name, value in given.items():
        _require(_fits(value, hints.get(name, Any)), _wrong_type(f"{key}.{name}", value, hints.get(name, Any)))


def _wrong_type(key: str, value: object, hint: object) -> str:
    return f"{key}={value}: must be {getattr(hint, '__name__', None) or hint}, not {type(value).__name__}".replace(
        "NoneType", "null"
    )


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a plain value out of YAML can stand for a parameter with this hint."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return isinstance(value, (list, tuple))
    hint = origin or hint
    return isinstance(value, hint) if isinstance(hint, type) else True


def _leaves(node: object, names: Sequence[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if prefix or name in names:
                yield from _leaves(value, names, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, node


def _check_count(key: str, value: object) -> None:
    """Hold counts, widths and sizes, which names tell (`num_*`, `*_dim`, `*_size`, ...), to positive whole numbers."""
    name = key.rpartition(".")[2]
    is_count = name.startswith(("num_", "max_", "min_")) or name.endswith(("_dim", "_size", "_px", "_per_record"))
    if is_count and name != "num_workers" and value is not None and not str(value).startswith("${"):
        _require(_fits(value, int) and value > 0, f"{key}={value}: must be a whole number, more than 0")
