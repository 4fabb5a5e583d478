import pytest
from omegaconf import OmegaConf

from visllama.config.search_settings import read_settings
from visllama.errors import ConfigError


@pytest.mark.parametrize("option", ["tpe", "random"])
def test_the_options_that_ship_are_right(compose_config, option):
    settings = read_settings(compose_config("train", f"search={option}"))
    assert settings.sampler == option and settings.batch is None and settings.prune
    assert set(settings.ranges["optim"]) == {"lr", "warmup_fraction"}


def test_an_end_of_a_range_is_typed_as_any_value(compose_config):
    settings = read_settings(compose_config("train", "search=tpe", "search.ranges.optim.lr.high=1e-2"))
    assert settings.ranges["optim"]["lr"] == {"low": 1e-5, "high": 1e-2, "log": True}


def test_a_search_of_the_users_own_is_a_yaml(compose_config, tmp_path):
    (tmp_path / "search").mkdir()
    text = "# @package _global_\ndefaults: [tpe, _self_]\nsearch:\n  n_trials: 7\n  ranges:\n    optim.clip_norm: {low: 0.5, high: 2.0}\n"
    (tmp_path / "search" / "mine.yaml").write_text(text)
    settings = read_settings(compose_config("train", "search=mine", config_dir=tmp_path))
    assert settings.n_trials == 7 and set(settings.ranges) == {"optim", "optim.clip_norm"}


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("search.n_trials=0", "search.n_trials=0: must be a whole number of 1 or more"),
        ("search.n_trials=many", "search.n_trials=many: must be a whole number"),
        ("search.n_trials=null", "search.n_trials=None: must be a whole number"),
        ("search.batch=1.5", "search.batch=1.5: must be a whole number of 1 or more, or null"),
        ("search.sampler=grid", "search.sampler=grid: choose tpe or random"),
        ("search.prune=maybe", "search.prune=maybe: must be true or false"),
        ("search.ranges=3", "search.ranges=3: give keys with their ranges"),
        ("+search.n_trails=3", "search.n_trails: there is no such key; there are sampler, n_trials"),
        ("~search.sampler", "no value for search.sampler"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(compose_config, typed, says):
    with pytest.raises(ConfigError, match=says):
        read_settings(compose_config("train", "search=tpe", typed))


def test_the_sweeper_alone_is_no_search():
    with pytest.raises(ConfigError, match="choose an option of the group"):
        read_settings(OmegaConf.create({"search": None}))
