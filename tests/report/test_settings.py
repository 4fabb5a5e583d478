"""Which runs are one setting, and what sets the others apart."""

from __future__ import annotations

import pytest

from tests.support.compared_runs import MLP, RESAMPLER, caption_evaluation, config_of, write_run
from visllama.errors import ConfigError
from visllama.report.judged_run import read_runs
from visllama.report.settings import check_keys, differing_keys, group, in_words, labels, value_at


@pytest.fixture
def runs_of(tmp_path):
    """Make runs with these configurations."""

    def make(*configs):
        folders = []
        for number, config in enumerate(configs):
            evaluation = caption_evaluation({"CIDEr": 1.0})
            folders.append(write_run(tmp_path / f"run{number}", {"scenes": evaluation}, config))
        return read_runs(folders)

    return make


def test_values_at_keys(runs_of):
    run = runs_of(config_of(lr=4e-3))[0]
    assert value_at(run, "optim.lr") == "0.004" and value_at(run, "model.connector.kind") == "MLPConnector"
    assert value_at(run, "optim.lr_by_part.markers") == "none" and value_at(run, "optim.momentum") == "-"
    assert in_words(True) == "true" and in_words(1e-5) == "1e-05" and in_words("a\nb\x1b") == "a b\\x1b"


def test_headers_are_short_where_that_tells_them_apart():
    assert labels(["model.connector.kind", "optim.lr"]) == ["connector", "lr"]
    assert labels(["model.connector.width", "model.lora.width", "seed"]) == [
        "model.connector.width",
        "model.lora.width",
        "seed",
    ]


class TestDiffering:
    def test_where_how_fast_and_under_which_name_is_no_setting(self, runs_of):
        one = config_of(micro_batch_size=64, trainer={"devices": 1, "max_steps": 100})
        two = config_of(micro_batch_size=32, trainer={"devices": 8, "max_steps": 100}, name="other")
        assert differing_keys(runs_of(one, two)) == []

    def test_rates_steps_and_seeds_are(self, runs_of):
        one = config_of(trainer={"max_steps": 100})
        two = config_of(seed=2, lr=1e-3, trainer={"max_steps": 200})
        assert differing_keys(runs_of(one, two)) == ["optim.lr", "seed", "trainer.max_steps"]
        assert differing_keys(runs_of(one, two), ["seed"]) == ["optim.lr", "trainer.max_steps"]

    def test_another_class_stands_for_its_arguments(self, runs_of):
        one, two = config_of(connector=MLP), config_of(connector=RESAMPLER)
        two["model"]["connector"] |= {"depth": 2, "num_image_tokens": 32}
        assert differing_keys(runs_of(one, two)) == ["model.connector.kind"]
        one["optim"]["_target_"] = "torch.optim.SGD"
        one["optim"]["lr"] = 1.0
        assert set(differing_keys(runs_of(one, two))) == {"model.connector.kind", "optim.kind", "optim.lr"}


class TestGroups:
    def test_runs_that_differ_in_the_seed_are_one_row_and_rows_are_in_order(self, runs_of):
        configs = [config_of(seed, lr) for lr in (1e-2, 9e-3, 1e-1) for seed in (1, 2)]
        settings = group(runs_of(*configs), ["optim.lr"], ["seed"], mixed=False)
        assert [setting.values for setting in settings] == [("0.009",), ("0.01",), ("0.1",)]
        assert [len(setting.runs) for setting in settings] == [2, 2, 2]

    def test_texts_come_behind_numbers(self, runs_of):
        configs = [config_of(clip=clip) for clip in ("none", 2.0, None, 10.0)]
        assert [s.values[0] for s in group(runs_of(*configs), ["clip"], [], mixed=True)] == ["2", "10", "none"]

    def test_a_mean_of_other_settings_is_refused(self, runs_of):
        runs = runs_of(config_of(1, 1e-2), config_of(2, 1e-3))
        with pytest.raises(ConfigError, match=r"differ in optim\.lr too \(0\.01 in run0, 0\.001 in run1\)"):
            group(runs, ["model.connector.kind"], ["seed"], mixed=False)
        assert len(group(runs, ["model.connector.kind"], ["seed"], mixed=True)[0].runs) == 2
        assert len(group(runs, ["model.connector.kind"], ["seed", "optim.lr"], mixed=False)[0].runs) == 2

    def test_the_same_run_twice_is_refused(self, runs_of):
        runs = runs_of(config_of(1), config_of(1))
        with pytest.raises(ConfigError, match="run0 and run1 are both of seed=1 in the one row"):
            group(runs, [], ["seed"], mixed=False)


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ("lr", r"did you mean optim\.lr\?"),
            ("optim.rl", r"did you mean optim\.lr"),
            ("model.connector", r"did you mean model\.connector\.kind"),
            ("quite.another", "look into a config.yaml"),
        ],
    )
    def test_an_unknown_one_is_refused_with_what_was_meant(self, runs_of, key, says):
        with pytest.raises(ConfigError, match=says):
            check_keys("rows", [key], runs_of(config_of()))

    def test_one_that_some_runs_have_is_none_of_the_others(self, runs_of):
        runs = runs_of(config_of(connector=MLP, depth=3), config_of(connector=RESAMPLER))
        check_keys("rows", ["depth"], runs)
        assert [value_at(run, "depth") for run in runs] == ["3", "-"]

    def test_runs_without_a_config_have_none(self, runs_of):
        with pytest.raises(ConfigError, match=r"rows=seed: run0 holds no config\.yaml"):
            check_keys("rows", ["seed"], runs_of(None))
