"""CLIPScore and CHAIR of an evaluation: what they need is asked for early, and their figures are of the right images."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of
from tests.support.whole_clip import write_whole_clip
from visllama.config.check_groups import check_evaluations
from visllama.config.objective import possible_objectives
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.chair import object_names
from visllama.evaluation.per_image import read_scores
from visllama.evaluation.picture_scores import load_clip
from visllama.evaluation.runner import judge, read_prompts

SCENES = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 6, "captions_per_record": 2}
NAMES = "square\ncircle\ntriangle\nstar\nring\nheart\ncross\n"
IDS = [f"test-{number:06d}" for number in range(6)]


def settings(**more) -> dict:
    metrics = ["CIDEr", "CLIPScore", "CHAIR"]
    return {"mine": evaluation(task="caption", split="test", batch_size=4, metrics=metrics, source=SCENES, **more)}


@pytest.fixture
def files(tmp_path):
    """A list of shapes, annotations by which nothing was drawn in any picture, and a whole CLIP."""
    (tmp_path / "names.txt").write_text(NAMES)
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES.split())]
    content = {"categories": categories, "images": [{"id": image} for image in IDS], "annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    clip = write_whole_clip(tmp_path / "clip")
    return {"instances": str(tmp_path / "instances.json"), "object_names": str(tmp_path / "names.txt"), "clip": clip}


def test_an_evaluation_measures_both(make_model, files, tmp_path):
    model = make_model(dtype=torch.float32)
    config = settings(**files, decoding={"max_new_tokens": 12})
    result = judge(model, maker_of(model), config, judged_sources(config, []), SETTINGS, tmp_path, "these weights")[
        "mine"
    ]
    assert {"CLIPScore", "RefCLIPScore", "CHAIRs", "CHAIRi"} <= set(result["metrics"]) == set(result["intervals"])

    folder = tmp_path / "evaluations" / "mine"
    captions = {row["image_id"]: row["caption"] for row in json.loads((folder / "captions.json").read_text())}
    references: dict[str, str] = {}
    for row in json.loads((folder / "references.json").read_text())["annotations"]:
        references[row["image_id"]] = f"{references.get(row['image_id'], '')} {row['caption']}"
    names = object_names(files["object_names"])
    absent = []
    for image in sorted(captions):
        there = names.mentioned(references[image])
        absent.append([name for name in names.mentioned(captions[image]) if name not in there])
    assert result["metrics"]["CHAIRs"] == pytest.approx(sum(map(bool, absent)) / 6)
    found = read_scores(folder / "scores.jsonl")
    assert found.metrics["CHAIRi"].value == pytest.approx(result["metrics"]["CHAIRi"])
    assert (found.per_row["CHAIRs"] > 0).tolist() == list(map(bool, absent))


def test_pictures_of_another_split_are_refused_before_a_model_is_loaded(files, tmp_path):
    content = json.loads((tmp_path / "instances.json").read_text()) | {"images": [{"id": IDS[0]}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    config = settings(**files)
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.instances=.*: 5 images are not in it, first test-000001"):
        read_prompts(config, judged_sources(config, []))


def test_a_clip_that_is_none_is_refused_before_anything_is_written(make_model, files, tmp_path):
    """The model's own is meant, whose tokenizer is no CLIP's."""
    model = make_model(dtype=torch.float32)
    config = settings(**(files | {"clip": None}))
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.clip: .*does not end a text"):
        judge(model, maker_of(model), config, judged_sources(config, []), SETTINGS, tmp_path, "these weights")
    assert not list((tmp_path / "evaluations" / "mine").iterdir())


def test_a_clip_that_is_not_there_is_refused_by_its_key(make_model, files):
    model = make_model(dtype=torch.float32)
    (config,) = settings(**(files | {"clip": "./nowhere"})).values()
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.clip: path=\./nowhere: no such folder"):
        load_clip(model, "mine", config)


KEY = "evaluation.scenes_caption"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ([f"{KEY}.metrics=[CHAIR]"], f"metrics names CHAIR: give {KEY}.instances=FILE"),
        ([f"{KEY}.instances=x.json"], "only CHAIR reads it"),
        ([f"{KEY}.clip=x"], "only CLIPScore reads it"),
        ([f"{KEY}.metrics=[CHAIR]", f"{KEY}.instances=nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_what_they_need_is_asked_for(compose_config, typed, says):
    cfg = compose_config("evaluate", *typed)
    with pytest.raises(ConfigError, match=says):
        check_evaluations(cfg.evaluation)


def test_fewer_absent_objects_are_better(compose_config):
    cfg = compose_config("train", "evaluation=[scenes_caption]", f"{KEY}.metrics=[CLIPScore,CHAIR]")
    better = {objective.metric: objective.is_higher_better for objective in possible_objectives(cfg)}
    assert better["CHAIRi"] is False and better["CHAIRs"] is False
    assert better["CLIPScore"] and better["RefCLIPScore"]
