import re

import pytest

from visllama.config.check_keys import check_groups_typed, check_known, check_nodes, check_not_typed, check_typed
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


@pytest.mark.parametrize("typed", ["optim.lr=1", "model/connector=mlp", "data.num_workers=1"])
def test_a_typed_group_that_a_mode_does_not_read_is_refused(compose_config, typed):
    compose_config("train", "seed=2", "evaluation=none", typed)
    key = typed.partition("=")[0]
    with pytest.raises(
        ConfigError, match=f"{key}: this does not read it, for a reason: leave it out. It reads seed, eval"
    ):
        check_groups_typed("this", ("seed", "evaluation", "hydra"), "for a reason")


def test_typed_groups_that_a_mode_reads_are_taken(compose_config):
    compose_config("train", "seed=2", "evaluation/decoding=beam5", "+evaluation.scenes_caption.prompt=x")
    check_groups_typed("this", ("seed", "evaluation"), "for a reason")


def test_a_key_that_is_of_another_mode_is_refused_where_it_is_typed(compose_config):
    compose_config("train", "seed=2")
    check_not_typed("name", "is not read")
    with pytest.raises(ConfigError, match="seed: is not read: leave it out"):
        check_not_typed("seed", "is not read")
