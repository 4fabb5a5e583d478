"""What to type instead: Hydra's errors about a command line, with the key, the value found, and the right spelling."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visllama.config.hints import KEYS, OPTIONS, OTHER_NAMES
from visllama.config.overrides import key_of, override
from visllama.config.schema import conf_dir
from visllama.errors import ConfigError

_NAMED_BELOW = {"data/source": "data.sources", "logger": "logger", "callbacks": "callbacks", "evaluation": "evaluation"}
"""The groups of which several options may be chosen, and below which key each stands by its name."""


def explain(error: Exception, arguments: Sequence[str], verb: str) -> str | None:
    """Return what is wrong with a command line, and what would be right; None for an error that is not about it.

    Args:
        error: What Hydra raised.
        arguments: What was typed, without the program and the verb.
        verb: Whose config it is.
    """
    said = _lines(error)
    told = next((cause for cause in (error, error.__cause__) if isinstance(cause, ConfigError)), None)
    if told or "Only one of --run" in said[0]:
        return str(told or error)
    groups = known_groups(arguments)
    if said[0].startswith("Config group override must be"):
        return _about_options(arguments, groups)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if isinstance(error, MissingConfigException):
        return _about_option(error, said, groups, arguments)
    composed = re.match(r"In '([\w/]+)/(\w+)'", said[0])
    if composed and _lacks_package(*composed.groups(), arguments):
        group, option = composed.groups()
        line = f"# @package {_NAMED_BELOW[group]}.{option}"
        return f"{group}={option}: its YAML has to begin with the line  {line}  ({said[-1]})"
    if isinstance(error, OverrideParseException):
        return _about_grammar(error.override, said)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or next(iter(re.findall(r"override '([^']*)'", said[0])), "")
    key = key.partition("@")[0]
    if (said[0].startswith("Could not override") or "is not in struct" in said[0] or " not in '" in said[0]) and key:
        return _about_key(key, _value(arguments, key), said, groups, known_config(verb, _source(arguments)))
    if said[0].startswith("Ambiguous value"):
        typed = re.findall(r"'(.*?)'", said[0])[0]
        key, _, values = typed.partition("=")
        return f"{typed}: several values are a sweep:  -m {typed}  (one list is {key}=[{values}])"
    return _about_value(key, said, arguments)


def explain_options(arguments: Sequence[str], verb: str) -> str | None:
    """Return what is meant by a key that was typed as an option (`--lr 1e-3`); None where all options are Hydra's."""
    _, unknown = get_args_parser().parse_known_args(arguments)
    if not unknown:
        return None
    typed, _, value = unknown[0].partition("=")
    if not typed.startswith("-"):
        return f"{unknown[0]}: an override is key=value"
    if not value and typed in arguments[:-1]:
        value = arguments[arguments.index(typed) + 1]
    key = typed.lstrip("-").replace("-", "_")
    cfg = known_config(verb, _source(arguments))
    keys = list(_dotted(cfg))
    if key in KEYS:
        return f"{unknown[0]}: there is no such key. Instead: {KEYS[key]}"
    found = [key] if key in keys else _candidates(key, value, known_groups(arguments), keys)
    meant = " or ".join(name if "=" in name else f"{name}={value or 'VALUE'}" for name in found[:3])
    return f"{unknown[0]}: a key is typed without dashes, as key=value. " + (
        f"Did you mean {meant}?" if found else "--help shows all."
    )


def _key(typed: str) -> str:
    return key_of(typed).partition("@")[0]


def _value(arguments: Sequence[str], key: str) -> str:
    """Return what was typed as a key's value."""
    return next((typed.partition("=")[2] for typed in arguments if _key(typed) == key), "")


def _source(arguments: Sequence[str]) -> str:
    """Return the source that was chosen, if it is one of ours."""
    chosen = _value(arguments, "source")
    return chosen if (conf_dir() / "source" / f"{chosen}.yaml").is_file() and re.fullmatch(r"\w+", chosen) else ""


def _lines(error: Exception) -> list[str]:
    text = f"{error}\n{error.__cause__ or ''}"
    return [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]


def _own_folder(arguments: Sequence[str]) -> Path | None:
    """Return the folder of the user's own configs, as `--config-dir` names it."""
    typed = get_args_parser().parse_known_args(arguments)[0].config_dir
    return Path(typed) if typed else None


def _lacks_package(group: str, option: str, arguments: Sequence[str]) -> bool:
    """Return whether an option of the user's own lacks the line that says below which key it stands."""
    folder = _own_folder(arguments)
    if group not in _NAMED_BELOW or folder is None:
        return False
    path = folder / group / f"{option}.yaml"
    return path.is_file() and "@package" not in path.read_text(encoding="utf-8", errors="replace")


def known_groups(arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return each config group's options, those of a `--config-dir` too."""
    own = _own_folder(arguments)
    folders = [conf_dir()] if own is None else [conf_dir(), own]
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group not in (".", "local"):
                groups.setdefault(group, set()).add(path.stem)
    return {group: sorted(options) for group, options in groups.items()}


@cache
def known_config(verb: str, source: str = "") -> DictConfig:
    """Return a verb's config as it is when nothing is typed; that of `prepare` with a source's own keys."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(verb, [f"source={source}"] if source and verb == "prepare" else [])


def _dotted(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in node:
        key = f"{prefix}{name}"
        yield key
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        if OmegaConf.is_dict(node[name]):
            yield from _dotted(node[name], f"{key}.")


def _about_option(
    error: MissingConfigException, said: list[str], groups: dict[str, list[str]], arguments: Sequence[str]
) -> str:
    """Explain an option that a group does not have."""
    missing = re.search(r"'([^']*)'", said[0])
    group, _, option = (error.missing_cfg_file or (missing[1] if missing else "")).rpartition("/")
    if group not in groups:
        primary = said[0].startswith("Cannot find primary config")
        return f"--config-name {option}: a verb chooses its config by itself; leave this out" if primary else said[0]
    typed = f"{group}={option}"
    if typed in OPTIONS:
        return f"{typed}: there is no such option. Instead: {OPTIONS[typed]}"
    elsewhere = [f"{other}={option}" for other, options in groups.items() if option in options]
    close = [f"{group}={name}" for name in get_close_matches(option, groups[group], 2)]
    hint = f"did you mean {' or '.join(elsewhere + close)}? " if elsewhere or close else ""
    own = "" if _own_folder(arguments) else "; one of your own is found by --config-dir DIR"
    return f"{group}={option}: {hint}There are {group}={', '.join(groups[group])}{own}"


def _about_options(arguments: Sequence[str], groups: dict[str, list[str]]) -> str:
    """Explain a group that was given something else than the names of its options."""
    for typed in arguments:
        group = _key(typed)
        if group in groups and not isinstance(OverridesParser.create().parse_override(typed).value(), (str, list)):
            return f"{typed}: choose an option of the group: {group}={', '.join(groups[group])}"
    return f"{' '.join(arguments)}: a group is given an option's name"


def _about_value(key: str, said: list[str], arguments: Sequence[str]) -> str:
    """Return Hydra's own words about a value, behind what was typed."""
    told = [line for line in said if "_type" not in line and "full_key" not in line] or said[:1]
    merging = "Error merging override "
    if told[0].startswith(merging) and len(told) > 1:
        typed = told[0].removeprefix(merging)
        name, _, value = typed.partition("=")
        as_list = f"; a list is written {name}=[{value}]" if "is not a ListConfig" in told[1] else ""
        return f"{typed}: {'; '.join(told[1:])}{as_list}"
    text = "; ".join(told)
    if key:
        return text if key in told[0] else f"{key}: {text}"
    overrides = [typed for typed in arguments if "=" in typed or typed.startswith("~")]
    is_named = any((typed if typed.startswith("~") else _key(typed)) in text for typed in overrides)
    return text if is_named or not overrides else f"{' '.join(overrides)}: {text}"


def _about_grammar(typed: str, said: list[str]) -> str:
    """Explain an override that does not parse: most often its value needs quotes."""
    key, equals, value = typed.partition("=")
    if not equals:
        return f"{typed}: an override is key=value"
    if not re.fullmatch(r"[+~]*[\w@./-]+", key):
        return f"{typed}: {key!r} is no key ({said[-1]})"
    quoted = override(key, value)
    quoted = f'"{quoted}"' if not re.search(r'["$`\\!]', quoted) else shlex.quote(quoted)
    return f"{typed}: does not parse: Hydra wants such a value quoted:  {quoted}"


def _about_key(key: str, value: str, said: list[str], groups: dict[str, list[str]], cfg: DictConfig) -> str:
    """Explain a key that is not there."""
    keys = [*_dotted(cfg), "hydra.run.dir"]
    group = key.replace(".", "/")
    if group in groups and group.partition("/")[0] not in cfg:
        why = "the model is described inside the weights" if group.startswith("model") else "leave it out"
        if group == "source":
            why = f"data={value or 'NAME'} chooses what is learned from" if "data" in cfg else why
        return f"{key}={value}: this verb has no {group}, {'prepare' if group == 'source' else 'train'} does: {why}"
    if key in keys or (key in groups and key.replace("/", ".") not in keys):
        return f"{key}: {'; '.join(said)}"  # the key is right: Hydra's own words say what is not
    elsewhere = [s for s in groups["source"] if "source" in cfg and key in list(known_config("prepare", s))]
    if elsewhere:
        return f"{key}: source={cfg.source} has no such key; source={', '.join(elsewhere)} has: choose one of them"
    name = key.rpartition(".")[2]
    if name in KEYS:
        return f"{key}: there is no such key. Instead: {KEYS[name]}"
    parent = key.rpartition(".")[0]
    is_free = bool(parent) and OmegaConf.get_type(OmegaConf.select(cfg, parent)) is dict
    adds = f" +{key}=VALUE adds one." if is_free else ""
    found = _candidates(key, value, groups, keys)
    if found:
        return f"{key}: there is no such key. Did you mean {' or '.join(found[:4])}?{adds}"
    beside = [other for other in keys if other.rpartition(".")[0] == parent]
    listed = f" Here are {', '.join(beside)}." if beside else ""
    return f"{key}: there is no such key.{listed} --help shows all.{adds}"


def _candidates(key: str, value: str, groups: dict[str, list[str]], keys: list[str]) -> list[str]:
    """Return what may have been meant by a key that is not there, most likely first."""
    name = re.split(r"[./]", key)[-1]
    dotted, slashed = key.replace("/", "."), key.replace(".", "/")
    if dotted in keys and dotted != key:
        return [dotted]
    if slashed in groups:
        return [f"{slashed}={{{','.join(groups[slashed])}}}"]
    named = [group for group in groups if group.rpartition("/")[2] == name]
    chosen = [f"{group}={value}" for group in named if value in groups[group]]
    if chosen:
        return chosen
    found = [OTHER_NAMES[name]] if OTHER_NAMES.get(name) in keys else []
    found += [f"{group}=OPTION" for group in named]
    found += [other for other in keys if other.rpartition(".")[2] == name and other != key]
    found += [f"{group}={name}" for group, options in groups.items() if name in options]
    if not found:
        by_name: dict[str, list[str]] = {}
        for other in keys:
            by_name.setdefault(other.rpartition(".")[2], []).append(other)
        close = [k for near in get_close_matches(name, by_name, 2) for k in by_name[near]]
        alike = [g for g in groups if value in groups[g] and get_close_matches(name, [g.rpartition("/")[2]])]
        found = [f"{group}={value}" for group in alike] or get_close_matches(key, keys, 2, 0.8) or close
        found += [f"{group}=OPTION" for group in get_close_matches(slashed, list(groups), 1, 0.8)]
    return list(dict.fromkeys(found))
