import os

import pytest
from omegaconf import OmegaConf

from visllama.config.replay import read_config
from visllama.config.run_folder import _flat, _without_removed_keys, check_folder, find_folder
from visllama.config.schema import TrainConfig
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


@pytest.mark.parametrize("words", [{}, {"resume": "here"}])
@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ("loss: {_target_: lab.Loss, power: 2}", {"loss": None}, r"loss\._target_=lab\.Loss there, None now"),
        (
            "data: {sources: {a: {path: x}, b: {path: y}}}",
            {"data": {"sources": {"a": {"path": "x"}}}},
            "b.path=y there",
        ),
    ],
)
def test_what_only_the_earlier_run_had_differs(tmp_path, before, now, key, words):
    (tmp_path / "config.yaml").write_text(before)
    with pytest.raises(ConfigError, match=key):
        check_folder(hydra_of(tmp_path), OmegaConf.create({**now, **words}))


def test_keys_that_only_an_earlier_version_had_do_not_differ(tmp_path):
    """Nobody could type them again: a run of that version would never go on."""
    (tmp_path / "config.yaml").write_text("stage: {epochs: 1.0, warmth: 3}\nyear: 2025\n")
    cfg = OmegaConf.structured(TrainConfig)
    cfg.stage.epochs = 1.0
    before = _flat(_without_removed_keys(read_config(tmp_path / "config.yaml"), cfg))
    assert before == {"stage.epochs": 1.0}


def test_where_a_value_refers_to_another_nothing_below_it_differs(tmp_path):
    (tmp_path / "config.yaml").write_text("a: {path: x}\nb: {path: x}\n")
    check_folder(hydra_of(tmp_path), OmegaConf.create({"a": {"path": "x"}, "b": "${a}"}))


def test_the_refusal_names_what_may_differ_as_it_is_typed(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"as it began; trainer\.\*, .*, data\.num_workers may differ, and with"):
        check_folder(hydra_of(tmp_path), OmegaConf.create({"seed": 2, "resume": "here"}))
