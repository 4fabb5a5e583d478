import re

import pytest

from visllama.config.check_keys import check_known, check_nodes, check_typed
from visllama.errors import ConfigError


def test_a_key_that_nothing_reads_is_refused_with_a_near_one(compose_config):
    cfg = compose_config("train", "+trainer.max_step=1")
    with pytest.raises(
        ConfigError, match=r"trainer\.max_step: there is no such key.*Did you mean trainer\.max_steps\?"
    ):
        check_known(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.connector=mlp", "an option of a group is chosen with slashes: model/connector=mlp"),
        ("+callbacks.mine._target_=os.system", "callbacks.mine._target_='os.system' is not allowed"),
    ],
)
def test_a_group_holds_what_an_option_fills_in(compose_config, override, message):
    cfg = compose_config("train", override)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_nodes(cfg)


def test_a_typed_key_that_the_verb_does_not_read_is_refused(compose_config):
    compose_config("caption", "trainer.devices=2")
    with pytest.raises(ConfigError, match=r"trainer\.devices: caption does not read it.*trainer\.precision"):
        check_typed("caption", ("precision",))
