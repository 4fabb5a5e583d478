"""What a sweep is ranked by is what its config names, and what its runs measure."""

from __future__ import annotations

import pytest

from visllama.config.checks import check_train
from visllama.config.objective import find_objective, main_objectives, possible_objectives
from visllama.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "name", "direction"),
    [
        ([], "scenes_caption/CIDEr", "higher is better"),
        (["stage=finetune"], "scenes_vqa/accuracy", "higher is better"),
        (["data=instruct_mix"], "vqav2/accuracy", "higher is better"),
        (["stage=finetune", "evaluation=[scenes_caption,scenes_vqa]"], "scenes_caption/CIDEr", "higher is better"),
        (["stage=finetune", "evaluation=none"], "val/loss", "lower is better"),
        (["judge=false"], "val/loss", "lower is better"),
        (["objective=val/loss"], "val/loss", "lower is better"),
        (["objective=scenes_caption/BLEU-4"], "scenes_caption/BLEU-4", "higher is better"),
        (["evaluation.scenes_caption.metrics=[ROUGE-L]"], "scenes_caption/CIDEr", "higher is better"),
        (["evaluation=[vqav2]", "evaluation.vqav2.metrics=[accuracy_normalise_all]"], "vqav2/accuracy_normalise_all", "higher is better"),
    ],
)  # fmt: skip
def test_the_first_evaluation_or_what_is_named(compose_config, typed, name, direction):
    found = find_objective(compose_config("train", *typed))
    assert (found.name, found.direction) == (name, direction)


def test_a_run_that_measures_nothing_has_none(compose_config):
    assert find_objective(compose_config("train", "judge=false", "trainer.val_check_interval=null")) is None


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        (["objective=CIDEr"], "choose scenes_caption/CIDEr, scenes_caption/BLEU-1, .*val/loss"),
        (["objective=scenes_caption/accuracy"], "choose scenes_caption/CIDEr"),
        (["objective=scenes_vqa/accuracy", "evaluation=none"], "choose val/loss"),
        (["objective=val/loss", "trainer.val_check_interval=null"], "choose scenes_caption/CIDEr"),
        (["objective=val/loss", "trainer.val_check_interval=null", "judge=false"], "nothing is judged or validated"),
    ],
)
def test_what_is_not_measured_is_refused_before_anything_is_loaded(compose_config, typed, there):
    with pytest.raises(ConfigError, match=rf"objective=.*: this run does not measure it: .*{there}"):
        check_train(compose_config("train", *typed))


def test_each_evaluation_has_one_main_metric(compose_config):
    cfg = compose_config("train", "stage=finetune")
    names = [objective.name for objective in main_objectives(cfg)]
    assert names == ["scenes_vqa/accuracy", "scenes_caption/CIDEr", "scenes_instruct/accuracy", "val/loss"]
    assert len({objective.name for objective in possible_objectives(cfg)}) == len(possible_objectives(cfg)) == 10


def test_values_are_shown_as_papers_do(compose_config):
    cfg = compose_config("train", "stage=finetune")
    shown = {objective.title: objective.show(0.61515) for objective in main_objectives(cfg)}
    assert shown["scenes_caption/CIDEr x100"] == "61.5" and shown["scenes_vqa/accuracy"] == "0.6"
    assert shown["val/loss"] == "0.615"
