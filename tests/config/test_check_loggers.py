"""Loggers that cannot be used, and keys that stand in a configuration, are refused before anything is loaded."""

from __future__ import annotations

import pytest

from visllama.config import check_loggers as checked
from visllama.config.check_loggers import check_loggers, check_secrets
from visllama.errors import ConfigError

HUB_KEY, WANDB_KEY, NEW_KEY = "hf_" + "Ab1" * 11, "c0ffee" * 6 + "cafe", "wandb_v1_" + "Ab1_" * 15


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_package_that_is_not_there_is_named_with_the_line_that_installs_it(compose_config, monkeypatch, name):
    cfg = compose_config("train", f"logger=[csv,{name}]")
    check_loggers(cfg)
    monkeypatch.setattr(checked, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"logger={name}: .* pip install 'visllama\[trackers\]'"):
        check_loggers(cfg)


def test_csv_changes_nothing(compose_config):
    assert compose_config("train", "logger=csv") == compose_config("train")
    assert list(compose_config("train", "logger=[csv,wandb]").logger) == ["wandb"]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_online_needs_a_key(compose_config, no_key, monkeypatch):
    check_loggers(compose_config("train", "logger=wandb"))
    cfg = compose_config("train", "logger=wandb", "logger.wandb.offline=false")
    with pytest.raises(ConfigError, match=r"logger\.wandb\.offline=false: wandb has no key: export WANDB_API_KEY"):
        check_loggers(cfg)
    no_key.write_text(f"machine api.wandb.ai login user password {WANDB_KEY}\n")
    check_loggers(cfg)
    no_key.write_text("api.wandb.ai\n")  # no file of this kind
    with pytest.raises(ConfigError, match="no key"):
        check_loggers(cfg)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    check_loggers(cfg)


@pytest.mark.parametrize(
    ("word", "variable"),
    [
        ("+logger.wandb.api_key=secret", "WANDB_API_KEY"),
        ("+logger.wandb.token=secret", "WANDB_API_KEY"),
        ("+logger.wandb.settings.api_key=secret", "WANDB_API_KEY"),
        ("+logger.wandb.api_key=${oc.env:WANDB_API_KEY}", "WANDB_API_KEY"),
        (f"logger.wandb.notes={WANDB_KEY}", "WANDB_API_KEY"),
        ("logger.wandb.entity='https://me:secret@wandb.example'", "WANDB_API_KEY"),
        (f"logger.wandb.tags=[a,{NEW_KEY}]", "WANDB_API_KEY"),
        (f"name={HUB_KEY}", "HF_TOKEN"),
    ],
)
def test_what_looks_like_a_key_is_refused_and_not_repeated(compose_config, word, variable):
    cfg = compose_config("train", "logger=wandb", word)
    with pytest.raises(ConfigError, match=rf"holds what looks like a key .*export {variable}=\.\.\.") as caught:
        check_secrets(cfg)
    assert str(caught.value).startswith(word.lstrip("+").partition("=")[0])
    assert not any(secret in str(caught.value) for secret in ("=secret", HUB_KEY, WANDB_KEY, NEW_KEY))


def test_keys_that_a_sweep_would_go_through_are_refused_too(compose_config):
    cfg = compose_config("train")
    with pytest.raises(ConfigError, match=r"logger\.wandb\.api_key"):
        check_secrets(cfg, ["seed=1,2", "+logger.wandb.api_key=a,b"])


def test_a_commit_and_a_count_of_tokens_are_no_keys(compose_config):
    cfg = compose_config("train", "logger=[wandb,trackio]", "model=real", "stage.max_text_tokens=64")
    assert "revision" in cfg.model.language_model
    check_secrets(cfg, ["stage.max_text_tokens=32,64", f"model.language_model.revision={WANDB_KEY}"])
