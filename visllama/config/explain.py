"""Explain an error that Hydra raises about a command line: the key, the value found, and what to type instead."""

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
"""The groups of which several options may be chosen at once, with the key below which each chosen option has a node."""
_MERGING = "Error merging override "
"""The words before an override in Hydra's message about a value that does not fit its key."""


def explain(error: Exception, arguments: Sequence[str], verb: str) -> str | None:
    """Return a message that says what is wrong with a command line and what to type instead.

    The names that exist are read from the YAML files, those of the user's own `--config-dir` included. Hydra's global
    state may be cleared on the way.

    Args:
        error: The error that Hydra raised while it composed the configuration.
        arguments: What was typed, without the program and the verb.
        verb: The verb, for example "train".

    Returns:
        The message. If the error is a `ConfigError`, or was caused by one, this is the message of the `ConfigError`.
        None for an error that is not about the command line.
    """
    lines = _lines(error)
    first_line = lines[0]
    for cause in (error, error.__cause__):
        if isinstance(cause, ConfigError):
            return str(cause)
    if "Only one of --run" in first_line:
        return str(error)

    groups = known_groups(arguments)
    # Hydra raises this one as a plain error of Python's.
    if first_line.startswith("Config group override must be"):
        return _about_options(arguments, groups)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if isinstance(error, MissingConfigException):
        return _about_option(error, lines, groups, arguments)

    message = _about_package(lines, arguments)
    if message is not None:
        return message
    if isinstance(error, OverrideParseException):
        return _about_grammar(error.override, lines)

    key = _key_in(error, lines)
    if key and _is_about_key(first_line):
        value = _value(arguments, key)
        source = _source(arguments)
        return _about_key(key, value, lines, groups, known_config(verb, source))
    if first_line.startswith("Ambiguous value"):
        return _about_several(first_line)
    return _about_value(key, lines, arguments)


def explain_options(arguments: Sequence[str], verb: str) -> str | None:
    """Return a message about the first option that Hydra does not know, for example a key typed as `--lr 1e-3`.

    Args:
        arguments: What was typed, without the program and the verb.
        verb: The verb, for example "train".

    Returns:
        The message, with up to three overrides that were probably meant; None where Hydra knows all options.
    """
    _, unknown = get_args_parser().parse_known_args(arguments)
    if not unknown:
        return None
    word = unknown[0]
    option, _, value = word.partition("=")
    if not option.startswith("-"):
        return f"{word}: an override is key=value"

    # `--lr 1e-3`: the value is the next word.
    if not value and option in arguments[:-1]:
        position = arguments.index(option)
        value = arguments[position + 1]
    key = option.lstrip("-").replace("-", "_")
    if key in KEYS:
        return f"{word}: there is no such key. Instead: {KEYS[key]}"

    overrides = _overrides_meant(key, value, arguments, verb)
    advice = "--help shows all."
    if overrides:
        listed = " or ".join(overrides)
        advice = f"Did you mean {listed}?"
    return f"{word}: a key is typed without dashes, as key=value. {advice}"


def _overrides_meant(key: str, value: str, arguments: Sequence[str], verb: str) -> list[str]:
    """Return up to three overrides that may have been meant by a key and a value that were typed as an option."""
    source = _source(arguments)
    cfg = known_config(verb, source)
    keys = list(_dotted(cfg))
    candidates = [key]
    if key not in keys:
        groups = known_groups(arguments)
        candidates = _candidates(key, value, groups, keys)

    overrides = []
    for candidate in candidates[:3]:
        # A group's candidate has its option already.
        has_value = "=" in candidate
        override_meant = candidate if has_value else f"{candidate}={value or 'VALUE'}"
        overrides.append(override_meant)
    return overrides


def _key(word: str) -> str:
    """Return the key of an override, without a package behind `@`: "optim" of `optim@x=adamw`."""
    return key_of(word).partition("@")[0]


def _last_name(key: str) -> str:
    """Return the last name of a key or of a group: "lr" of "optim.lr", "lora" of "model/lora"."""
    return re.split(r"[./]", key)[-1]


def _value(arguments: Sequence[str], key: str) -> str:
    """Return the value that was typed for a key, from its first override; an empty string where there is none."""
    for word in arguments:
        if _key(word) == key:
            return word.partition("=")[2]
    return ""


def _source(arguments: Sequence[str]) -> str:
    """Return the value of `source=` if it is one of visllama's sources of `prepare`, else an empty string."""
    chosen = _value(arguments, "source")
    file = conf_dir() / "source" / f"{chosen}.yaml"
    is_ours = file.is_file()
    is_name = re.fullmatch(r"\w+", chosen) is not None
    return chosen if is_ours and is_name else ""


def _lines(error: Exception) -> list[str]:
    """Return the lines of an error's message and its cause, without empty ones; the error's type if none are left."""
    cause = error.__cause__ or ""
    text = f"{error}\n{cause}"

    lines = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped:
            lines.append(stripped)
    return lines or [type(error).__name__]


def _key_in(error: Exception, lines: Sequence[str]) -> str:
    """Return the key that an error of Hydra's is about; an empty string where it names none."""
    # OmegaConf knows the key, where it is what Hydra failed on.
    cause = error.__cause__
    omegaconf_error = cause if isinstance(cause, OmegaConfBaseException) else error
    key = getattr(omegaconf_error, "full_key", None)
    if not key:
        match = re.search(r"override '([^']*)'", lines[0])
        key = match[1] if match else ""
    return key.partition("@")[0]


def _is_about_key(line: str) -> bool:
    """Return whether the first line of an error's message says that a key does not exist."""
    if line.startswith("Could not override"):
        return True
    return "is not in struct" in line or " not in '" in line


def _own_folder(arguments: Sequence[str]) -> Path | None:
    """Return the folder of the user's own configs, as `--config-dir` names it."""
    options, _ = get_args_parser().parse_known_args(arguments)
    return Path(options.config_dir) if options.config_dir else None


def _about_package(lines: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Return the message for an option of the user's own whose YAML lacks `# @package`; None for any other error.

    Args:
        lines: The lines of Hydra's message.
        arguments: What was typed.
    """
    match = re.match(r"In '([\w/]+)/(\w+)'", lines[0])
    if match is None:
        return None
    group, option = match.groups()
    if not _lacks_package(group, option, arguments):
        return None
    package_line = f"# @package {_NAMED_BELOW[group]}.{option}"
    return f"{group}={option}: its YAML has to begin with the line  {package_line}  ({lines[-1]})"


def _lacks_package(group: str, option: str, arguments: Sequence[str]) -> bool:
    """Return whether the user's own YAML of an option lacks the line `# @package`, which says where its keys go."""
    folder = _own_folder(arguments)
    if group not in _NAMED_BELOW or folder is None:
        return False
    path = folder / group / f"{option}.yaml"
    if not path.is_file():
        return False
    content = path.read_text(encoding="utf-8", errors="replace")
    return "@package" not in content


def known_groups(arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the names of the options of each config group, as the YAML files in the folders of configs have them.

    Args:
        arguments: What was typed; a `--config-dir DIR` among them names the folder of the user's own configs.

    Returns:
        Sorted names of options by the name of their group, for example {"model/lora": ["none", "qv"]}.
    """
    folders = [conf_dir()]
    own_folder = _own_folder(arguments)
    if own_folder is not None:
        folders.append(own_folder)

    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            place = path.parent.relative_to(folder)
            group = place.as_posix()
            # "." holds the verbs' configs, and "local" this machine's: neither is chosen on a command line.
            if group in (".", "local"):
                continue
            options = groups.setdefault(group, set())
            options.add(path.stem)
    return {group: sorted(options) for group, options in groups.items()}


@cache
def known_config(verb: str, source: str = "") -> DictConfig:
    """Return a verb's configuration as it is composed without any override.

    The result is kept for later calls: do not change it. Hydra's global state is cleared on the way.

    Args:
        verb: The verb, for example "train". For an unknown verb, Hydra raises its own error.
        source: For the verb `prepare`, the name of the source whose own keys are included; "" for the default source.
            Other verbs ignore it.
    """
    words = [f"source={source}"] if source and verb == "prepare" else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(verb, words)


def _dotted(node: DictConfig, prefix: str = "") -> Iterable[str]:
    """Yield the dotted keys of a configuration at any depth, each node before the keys inside it."""
    for name in node:
        key = f"{prefix}{name}"
        yield key
        # Reading the value of one of these would fail, or leave the node.
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        if OmegaConf.is_dict(node[name]):
            yield from _dotted(node[name], f"{key}.")


def _about_option(
    error: MissingConfigException, lines: list[str], groups: dict[str, list[str]], arguments: Sequence[str]
) -> str:
    """Return the message for an option that its group does not have."""
    path = error.missing_cfg_file
    if not path:
        match = re.search(r"'([^']*)'", lines[0])
        path = match[1] if match else ""
    group, _, option = path.rpartition("/")
    if group not in groups:
        if lines[0].startswith("Cannot find primary config"):
            return f"--config-name {option}: a verb chooses its config by itself; leave this out"
        return lines[0]

    typed = f"{group}={option}"
    if typed in OPTIONS:
        return f"{typed}: there is no such option. Instead: {OPTIONS[typed]}"

    hint = ""
    choices = _choices_meant(group, option, groups)
    if choices:
        listed_choices = " or ".join(choices)
        hint = f"did you mean {listed_choices}? "
    listed = ", ".join(groups[group])
    about_own = "" if _own_folder(arguments) else "; one of your own is found by --config-dir DIR"
    return f"{typed}: {hint}There are {group}={listed}{about_own}"


def _choices_meant(group: str, option: str, groups: dict[str, list[str]]) -> list[str]:
    """Return the choices `GROUP=OPTION` that may have been meant by an option that its group does not have."""
    choices = []
    for other, options in groups.items():
        if option in options:
            choices.append(f"{other}={option}")

    close_options = get_close_matches(option, groups[group], 2)
    for close_option in close_options:
        choices.append(f"{group}={close_option}")
    return choices


def _about_options(arguments: Sequence[str], groups: dict[str, list[str]]) -> str:
    """Return the message for a group that was given something else than the names of its options."""
    for word in arguments:
        group = _key(word)
        if group not in groups:
            continue
        parsed = OverridesParser.create().parse_override(word)
        value = parsed.value()
        if not isinstance(value, (str, list)):
            listed = ", ".join(groups[group])
            return f"{word}: choose an option of the group: {group}={listed}"

    command_line = " ".join(arguments)
    return f"{command_line}: a group is given an option's name"


def _about_several(line: str) -> str:
    """Return the message for a value with commas in it, which only a sweep takes."""
    quoted = re.findall(r"'(.*?)'", line)
    typed = quoted[0]
    key, _, values = typed.partition("=")
    as_list = f"{key}=[{values}]"
    return f"{typed}: several values are a sweep:  -m {typed}  (one list is {as_list})"


def _about_value(key: str, lines: list[str], arguments: Sequence[str]) -> str:
    """Return Hydra's own message about a value, without its internal lines, behind the override that was typed.

    Args:
        key: The key that the error is about; an empty string where Hydra names none.
        lines: The lines of Hydra's message.
        arguments: What was typed.
    """
    # These lines name classes and internal paths.
    plain_lines = [line for line in lines if "_type" not in line and "full_key" not in line]
    if not plain_lines:
        plain_lines = lines[:1]

    first_line, *further_lines = plain_lines
    if first_line.startswith(_MERGING) and further_lines:
        typed = first_line.removeprefix(_MERGING)
        return _about_merge(typed, further_lines)

    text = "; ".join(plain_lines)
    if key:
        return text if key in first_line else f"{key}: {text}"

    # Hydra names no key: show all that was typed, unless its words hold one of the overrides.
    overrides = [word for word in arguments if "=" in word or word.startswith("~")]
    for word in overrides:
        name = word if word.startswith("~") else _key(word)
        if name in text:
            return text
    if not overrides:
        return text
    typed_overrides = " ".join(overrides)
    return f"{typed_overrides}: {text}"


def _about_merge(typed: str, reasons: Sequence[str]) -> str:
    """Return the message for an override whose value does not fit its key.

    Args:
        typed: The override.
        reasons: Hydra's reasons, each a line.
    """
    listed = "; ".join(reasons)
    if "is not a ListConfig" not in reasons[0]:
        return f"{typed}: {listed}"
    name, _, value = typed.partition("=")
    return f"{typed}: {listed}; a list is written {name}=[{value}]"


def _about_grammar(typed: str, lines: list[str]) -> str:
    """Return the message for an override that does not parse, which most often means that its value needs quotes."""
    key, equals, value = typed.partition("=")
    if not equals:
        return f"{typed}: an override is key=value"
    is_key = re.fullmatch(r"[+~]*[\w@./-]+", key) is not None
    if not is_key:
        return f"{typed}: {key!r} is no key ({lines[-1]})"

    # Two pairs of quotes: the shell takes off the outer ones, Hydra the inner ones.
    for_hydra = override(key, value)
    is_plain = re.search(r'["$`\\!]', for_hydra) is None
    for_shell = f'"{for_hydra}"' if is_plain else shlex.quote(for_hydra)
    return f"{typed}: does not parse: Hydra wants such a value quoted:  {for_shell}"


def _about_key(key: str, value: str, lines: list[str], groups: dict[str, list[str]], cfg: DictConfig) -> str:
    """Return the message for a key that does not exist.

    Args:
        key: The key that was typed.
        value: The value that was typed.
        lines: The lines of Hydra's message.
        groups: The names of the options of each config group.
        cfg: The verb's configuration as it is composed without any override.
    """
    group = key.replace(".", "/")
    outermost_group, _, _ = group.partition("/")
    if group in groups and outermost_group not in cfg:
        return _about_other_verb(group, key, value, cfg)

    # The key is right: Hydra's own words say what is not.
    keys = [*_dotted(cfg), "hydra.run.dir"]
    dotted = key.replace("/", ".")
    is_group_alone = key in groups and dotted not in keys
    if key in keys or is_group_alone:
        reasons = "; ".join(lines)
        return f"{key}: {reasons}"

    sources = _sources_with_key(key, groups["source"]) if "source" in cfg else []
    if sources:
        listed = ", ".join(sources)
        return f"{key}: source={cfg.source} has no such key; source={listed} has: choose one of them"

    advice = _advice(key, value, groups, keys, cfg)
    return f"{key}: there is no such key. {advice}"


def _sources_with_key(key: str, sources: Sequence[str]) -> list[str]:
    """Return those of the sources of `prepare` that have a key of their own with this name."""
    sources_with_key = []
    for source in sources:
        # As a list: OmegaConf's `in` is false for a key whose value is missing.
        keys_of_source = list(known_config("prepare", source))
        if key in keys_of_source:
            sources_with_key.append(source)
    return sources_with_key


def _advice(key: str, value: str, groups: dict[str, list[str]], keys: list[str], cfg: DictConfig) -> str:
    """Return what to type in place of a key that does not exist, as the end of its message.

    Args:
        key: The key that was typed.
        value: The value that was typed.
        groups: The names of the options of each config group.
        keys: The dotted keys that exist.
        cfg: The verb's configuration as it is composed without any override.
    """
    parent, _, name = key.rpartition(".")
    if name in KEYS:
        return f"Instead: {KEYS[name]}"

    # A plain dictionary, as the arguments of a class, takes any key.
    parent_node = OmegaConf.select(cfg, parent) if parent else None
    takes_any_key = OmegaConf.get_type(parent_node) is dict
    how_to_add = f" +{key}=VALUE adds one." if takes_any_key else ""

    candidates = _candidates(key, value, groups, keys)
    if candidates:
        listed = " or ".join(candidates[:4])
        return f"Did you mean {listed}?{how_to_add}"

    siblings = [other for other in keys if other.rpartition(".")[0] == parent]
    if not siblings:
        return f"--help shows all.{how_to_add}"
    listed = ", ".join(siblings)
    return f"Here are {listed}. --help shows all.{how_to_add}"


def _about_other_verb(group: str, key: str, value: str, cfg: DictConfig) -> str:
    """Return the message for a group that this verb's configuration does not have, but that of another verb has."""
    verb_with_group = "prepare" if group == "source" else "train"
    if group == "source" and "data" in cfg:
        advice = f"data={value or 'NAME'} chooses what is learned from"
    elif group.startswith("model"):
        advice = "the model is described inside the weights"
    else:
        advice = "leave it out"
    return f"{key}={value}: this verb has no {group}, {verb_with_group} does: {advice}"


def _candidates(key: str, value: str, groups: dict[str, list[str]], keys: list[str]) -> list[str]:
    """Return what may have been meant by a key that does not exist, most likely first.

    Args:
        key: The key that was typed.
        value: The value that was typed.
        groups: The names of the options of each config group.
        keys: The dotted keys that exist.

    Returns:
        Keys, as "optim.lr", and groups with an option, as "model/lora=qv".
    """
    # Dots and slashes were mixed up.
    dotted = key.replace("/", ".")
    if dotted in keys and dotted != key:
        return [dotted]
    slashed = key.replace(".", "/")
    if slashed in groups:
        options = ",".join(groups[slashed])
        return [f"{slashed}={{{options}}}"]

    # The last name is a group's, and the group has the option that was typed.
    name = _last_name(key)
    groups_of_name = [group for group in groups if _last_name(group) == name]
    choices = [f"{group}={value}" for group in groups_of_name if value in groups[group]]
    if choices:
        return choices

    # The last name is right, and something before it is not; or another trainer calls it so.
    candidates = []
    other_name = OTHER_NAMES.get(name)
    if other_name in keys:
        candidates.append(other_name)
    for group in groups_of_name:
        candidates.append(f"{group}=OPTION")
    for other in keys:
        if _last_name(other) == name and other != key:
            candidates.append(other)

    # The name is an option's, and its group was left out.
    for group, options in groups.items():
        if name in options:
            candidates.append(f"{group}={name}")

    if not candidates:
        candidates = _misspelt(key, value, groups, keys)
    return list(dict.fromkeys(candidates))


def _misspelt(key: str, value: str, groups: dict[str, list[str]], keys: list[str]) -> list[str]:
    """Return existing groups and keys that are spelt similarly to a key that does not exist, most likely first."""
    slashed = key.replace(".", "/")
    close_groups = get_close_matches(slashed, list(groups), 1, 0.8)
    similar_groups = [f"{group}=OPTION" for group in close_groups]

    # A group that has the option which was typed is the surest.
    name = _last_name(key)
    choices = []
    for group, options in groups.items():
        group_name = _last_name(group)
        if value in options and get_close_matches(name, [group_name]):
            choices.append(f"{group}={value}")
    if choices:
        return choices + similar_groups

    whole_keys = get_close_matches(key, keys, 2, 0.8)
    if whole_keys:
        return whole_keys + similar_groups
    return _keys_of_similar_name(name, keys) + similar_groups


def _keys_of_similar_name(name: str, keys: list[str]) -> list[str]:
    """Return the keys whose last names are spelt similarly to a name, the most similar first.

    The names before the last one are not compared: they may be missing in what was typed.
    """
    by_name: dict[str, list[str]] = {}
    for key in keys:
        last_name = _last_name(key)
        by_name.setdefault(last_name, []).append(key)

    similar_keys = []
    for close_name in get_close_matches(name, by_name, 2):
        similar_keys += by_name[close_name]
    return similar_keys
