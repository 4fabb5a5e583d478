import os

import pytest
from omegaconf import OmegaConf

from visllama.config.run_folder import check_folder, find_folder
from visllama.errors import ConfigError


def hydra_of(folder, subdir=".hydra"):
    return OmegaConf.create({"hydra": {"run": {"dir": str(folder)}, "output_subdir": subdir}})


def test_a_name_that_rests_on_nothing_is_told():
    config = OmegaConf.create({"hydra": {"run": {"dir": "${nowhere}/run"}}})
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: "):
        find_folder(config)


def test_the_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_folder(hydra_of("run")) == tmp_path / "run"


def test_a_new_folder_is_left_empty(tmp_path):
    check_folder(hydra_of(tmp_path / "run"), OmegaConf.create({"seed": 1}))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_verb_without_a_folder_makes_none(tmp_path):
    check_folder(hydra_of(tmp_path / "run", subdir=None), OmegaConf.create({}))
    assert not (tmp_path / "run").exists()


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=f"hydra.run.dir={tmp_path}{os.sep}run: cannot be written"):
        check_folder(hydra_of(tmp_path / "run"), OmegaConf.create({}))


def test_a_run_of_another_config_is_named_with_what_differs(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\noptim: {lr: 0.1}\n")
    same = OmegaConf.create({"seed": 1, "optim": {"lr": 0.1}})
    check_folder(hydra_of(tmp_path), same)
    other = OmegaConf.create({"seed": 1, "optim": {"lr": 0.2}})
    with pytest.raises(ConfigError, match=r"another config \(optim\.lr=0\.1 there, 0\.2 now\)"):
        check_folder(hydra_of(tmp_path), other)


def test_a_trial_leaves_nothing_and_refuses_what_cannot_be_made(tmp_path):
    check_folder(hydra_of(tmp_path / "a" / "run"), OmegaConf.create({}), make=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*run: cannot be written"):
        check_folder(hydra_of(tmp_path / "file" / "run"), OmegaConf.create({}), make=False)
