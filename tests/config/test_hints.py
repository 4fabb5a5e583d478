import re

import pytest
from omegaconf import DictConfig

from visllama.config.explain import known_config, known_groups
from visllama.config.hints import KEYS, OPTIONS, OTHER_NAMES
from visllama.config.schema import register


def configs() -> list[DictConfig]:
    register()
    return [known_config(verb) for verb in ("train", "evaluate")]


def is_key(name: str) -> bool:
    """Return whether a dotted name leads to a key of a verb."""
    for config in configs():
        node = config
        for part in name.split("."):
            if part not in node:
                break
            node = node._get_node(part)
        else:
            return True
    return name == "hydra.run.dir"


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_another_name_leads_to_a_key_of_ours(name):
    assert is_key(OTHER_NAMES[name]), OTHER_NAMES[name]
    assert name not in configs()[0], "a name of ours needs no hint"


def test_a_name_has_one_hint():
    assert not OTHER_NAMES.keys() & KEYS.keys()


@pytest.mark.parametrize("typed", OPTIONS)
def test_an_option_with_a_hint_is_one_that_its_group_lacks(typed):
    group, _, option = typed.partition("=")
    assert option not in known_groups()[group]


@pytest.mark.parametrize("hint", [*KEYS.values(), *OPTIONS.values()])
def test_the_options_that_a_hint_names_are_there(hint):
    groups = known_groups()
    for group, option in re.findall(r"(?<![\w.])([a-z_]+(?:/[a-z_]+)?)=([a-z]\w+)", hint):
        if group in groups and group != "data" and group != "source":
            assert option in groups[group], f"{group}={option}"
