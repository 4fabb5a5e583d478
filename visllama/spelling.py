"""What to type instead: Hydra's errors about a command line, with the key, the value found, and the right spelling."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visllama.config import conf_dir, override

_OTHER_NAMES = {
    "batch_size": "stage.global_batch_size", "train_batch_size": "stage.global_batch_size",
    "per_device_train_batch_size": "micro_batch_size", "accumulate_grad_batches": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size", "epochs": "stage.epochs", "max_epochs": "stage.epochs",
    "num_train_epochs": "stage.epochs", "num_epochs": "stage.epochs", "steps": "trainer.max_steps",
    "learning_rate": "optim.lr", "warmup_ratio": "optim.warmup_fraction", "warmup_steps": "optim.warmup_fraction",
    "lr_scheduler": "optim.schedule", "scheduler": "optim.schedule", "gradient_clip_val": "optim.clip_norm",
    "max_grad_norm": "optim.clip_norm", "gpus": "trainer.devices", "num_gpus": "trainer.devices",
    "device": "trainer.accelerator", "nodes": "trainer.num_nodes", "bf16": "trainer.precision",
    "val_check_interval": "trainer.val_fraction", "log_every_n_steps": "trainer.log_every_steps",
    "workers": "data.num_workers", "max_length": "stage.max_text_tokens", "freeze": "stage.trainable",
    "output_dir": "hydra.run.dir", "out": "hydra.run.dir", "run_name": "name", "checkpoint": "weights",
}  # fmt: skip
"""What other trainers call a key of ours."""


def explain(error: Exception, arguments: Sequence[str], verb: str) -> str | None:
    """Say what is wrong with a command line, and what would be right; None for an error that is not about it.

    Args:
        error: What Hydra raised.
        arguments: What was typed, without the program and the verb.
        verb: Whose config it is.
    """
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return str(error) if "Only one of --run" in str(error) else None
    said = _lines(error)
    groups = known_groups(arguments)
    if isinstance(error, MissingConfigException):
        return _about_option(error, said, groups)
    if isinstance(error, OverrideParseException):
        return _about_grammar(error.override, said)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or next(iter(re.findall(r"override '([^']*)'", said[0])), "")
    if said[0].startswith("Could not override") or "is not in struct" in said[0] or " not in '" in said[0]:
        return _about_key(key, said, groups, known_keys(verb))
    told = [line for line in said if "_type" not in line and "full_key" not in line]
    return f"{key}: " * (bool(key) and key not in told[0]) + "; ".join(told)


def _lines(error: Exception) -> list[str]:
    text = f"{error}\n{error.__cause__ or ''}"
    return [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]


def known_groups(arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """Give each config group's options, those of a `--config-dir` too."""
    folders = [conf_dir()]
    folders += [Path(value) for option, value in pairwise(arguments) if option in ("--config-dir", "-cd")]
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group not in (".", "local"):
                groups.setdefault(group, set()).add(path.stem)
    return {group: sorted(options) for group, options in groups.items()}


def known_keys(verb: str) -> list[str]:
    """Give the dotted keys of a verb's config."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(verb)
    return [*_dotted(cfg), "hydra.run.dir"]


def _dotted(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in node:
        key = f"{prefix}{name}"
        yield key
        if OmegaConf.is_dict(node._get_node(name)) and not OmegaConf.is_missing(node, name):
            yield from _dotted(node[name], f"{key}.")


def _about_option(error: MissingConfigException, said: list[str], groups: dict[str, list[str]]) -> str:
    """Explain an option that a group does not have."""
    missing = re.search(r"'([^']*)'", said[0])
    group, _, option = (error.missing_cfg_file or (missing[1] if missing else "")).rpartition("/")
    if group not in groups:
        return " ".join(said[:2])
    elsewhere = [f"{other}={option}" for other, options in groups.items() if option in options]
    close = [f"{group}={name}" for name in get_close_matches(option, groups[group], 2)]
    hint = f"did you mean {' or '.join(elsewhere + close)}? " if elsewhere or close else ""
    return f"{group}={option}: {hint}There are {group}={', '.join(groups[group])}"


def _about_grammar(typed: str, said: list[str]) -> str:
    """Explain an override that does not parse: most often its value needs quotes."""
    key, equals, value = typed.partition("=")
    if not equals:
        return f"{typed}: an override is key=value"
    if not re.fullmatch(r"[+~]*[\w@./-]+", key):
        return f"{typed}: {key!r} is no key ({said[-1]})"
    return f"{typed}: does not parse: Hydra wants such a value quoted:  {shlex.quote(override(key, value))}"


def _about_key(key: str, said: list[str], groups: dict[str, list[str]], keys: list[str]) -> str:
    """Explain a key that is not there."""
    name = re.split(r"[./]", key)[-1]
    dotted, slashed = key.replace("/", "."), key.replace(".", "/")
    if dotted in keys and dotted != key:
        found = [dotted]
    elif slashed in groups:
        found = [f"{slashed}={{{','.join(groups[slashed])}}}"]
    else:
        found = [other for other in keys if other.rpartition(".")[2] == name and other != key]
        found += [_OTHER_NAMES[name]] if _OTHER_NAMES.get(name) in keys and _OTHER_NAMES[name] not in found else []
        found += [f"{group}=..." for group in groups if group.rpartition("/")[2] == name]
        if not found:
            by_name = {}
            for other in keys:
                by_name.setdefault(other.rpartition(".")[2], []).append(other)
            close = [k for near in get_close_matches(name, by_name, 2) for k in by_name[near]]
            found = get_close_matches(key, keys, 2, 0.8) or close
            found += [f"{group}=..." for group in get_close_matches(slashed, list(groups), 1, 0.8)]
    parent = [other for other in keys if other.rpartition(".")[0] == dotted.rpartition(".")[0]]
    if found:
        return f"{key}: there is no such key. Did you mean {' or '.join(dict.fromkeys(found[:4]))}?"
    listed = f" Here are {', '.join(parent)}." if parent else ""
    return f"{key}: there is no such key.{listed} --help shows all; +{key}=VALUE adds one."
