"""What an evaluation writes joins the data set that it judged, and is read by pycocotools and by `evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from webdataset import TarWriter

from tests.prepare.made import picture, put
from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of
from tests.support.verbs import prepare
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_predictions, read_references
from visllama.evaluation.captions import score_captions
from visllama.evaluation.runner import judge
from visllama.evaluation.verb import score_files

SHARDS = "visllama.data.shards.source.ShardSource"


@pytest.fixture
def judged(make_model, tmp_path):
    """Judge prepared tars by a tiny model; gives the folder of the evaluation and its result."""
    model = make_model(dtype=torch.float32)

    def run(path: Path, task: str = "caption") -> tuple[Path, dict]:
        metrics = {"caption": ["CIDEr"], "vqa": ["accuracy"]}[task]
        source = {"_target_": SHARDS, "path": None, "val_path": str(path)}
        config = evaluation(task=task, split="val", batch_size=4, metrics=metrics, source=source)
        evaluations = {"mine": config}
        result = judge(
            model,
            maker_of(model),
            evaluations,
            judged_sources(evaluations, []),
            SETTINGS,
            tmp_path / "run",
            "these weights",
        )
        return tmp_path / "run" / "evaluations" / "mine", result["mine"]

    return run


@pytest.fixture
def prepared(compose_config, tmp_path):
    def run(*overrides: str) -> Path:
        cfg = compose_config("prepare", *map(str, overrides), f"paths.data={tmp_path}/data")
        prepare(cfg)
        return tmp_path / "data" / cfg.name

    return run


def cider(folder: Path, references: Path) -> float:
    """Score what an evaluation wrote as `evaluate predictions=` does; both of its files are read, and hold the same."""
    predictions = read_predictions(folder / "captions.json")
    assert read_predictions(folder / "predictions.jsonl") == predictions
    return score_captions(predictions, read_references(references), ("CIDEr",)).values["CIDEr"]


def coco_layout(folder: Path, name: str, file_names: dict[int, str]) -> Path:
    """Write pictures, and captions of them as COCO's and NoCaps' official files have them."""
    for number, file_name in file_names.items():
        put(folder / "images" / file_name, picture(40 * number))
    images = [{"id": number, "file_name": file_name} for number, file_name in file_names.items()]
    said = [(number, f"a red square number {number} by {n}") for number in file_names for n in range(2)]
    annotations = [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(said)]
    return put(folder / name, {"info": {}, "images": images, "annotations": annotations})


@pytest.mark.parametrize(
    ("name", "file_names"),
    [
        ("captions_val2017.json", {391: "000000000391.jpg", 7: "000000000007.jpg"}),
        ("nocaps_val_4500_captions.json", {0: "0013ea2087020901.jpg", 5: "00f3.jpg"}),
    ],
)
def test_pycocotools_loads_what_we_write(judged, prepared, tmp_path, name, file_names):
    official = coco_layout(tmp_path, name, file_names)
    folder, result = judged(prepared("source=coco", f"images={tmp_path}/images", f"captions={official}") / "val")
    captions = json.loads((folder / "captions.json").read_text())
    assert [row["image_id"] for row in captions] == sorted(file_names)
    for references in (official, folder / "references.json"):
        loaded = COCO(str(references)).loadRes(str(folder / "captions.json"))
        assert sorted(loaded.getImgIds()) == sorted(file_names)
        assert cider(folder, references) == result["metrics"]["CIDEr"]


def test_karpathys_flickr30k_has_its_ids(judged, prepared, tmp_path):
    images = []
    for number in (3, 12):
        put(tmp_path / "images" / f"{number}00.jpg", picture(number))
        images.append(
            {"imgid": number, "filename": f"{number}00.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}
        )
    file = put(tmp_path / "dataset_flickr30k.json", {"images": images})
    folder, _ = judged(prepared("source=coco", f"images={tmp_path}/images", f"captions={file}") / "test")
    loaded = COCO(str(folder / "references.json")).loadRes(str(folder / "captions.json"))
    assert sorted(loaded.getImgIds()) == [3, 12]


def test_predictions_of_a_folder_join_its_file_names(judged, prepared, tmp_path):
    names = ["b c.jpg", "a.jpg", "sub/ä.jpg"]
    for number, name in enumerate(names):
        put(tmp_path / "images" / name, picture(number))
    table = put(tmp_path / "t.csv", "image,caption\n" + "".join(f"{name},a cat\n" for name in names))
    folder, result = judged(prepared("source=folder", f"images={tmp_path}/images", f"table={table}") / "train")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == names
    assert cider(folder, folder / "references.json") == result["metrics"]["CIDEr"]


def write_tar(path: Path, ids: list) -> Path:
    """Write a record for each id; None brings none."""
    with TarWriter(str(path), mtime=0) as tar:
        for number, image_id in enumerate(ids):
            text = {"captions": [f"a red square number {number}"]}
            text |= {} if image_id is None else {"image_id": image_id}
            tar.write({"__key__": f"r{number}", "jpg": picture(number), "json": text})
    return path


def test_a_record_without_its_own_id_goes_by_its_key(judged, tmp_path):
    folder, result = judged(write_tar(tmp_path / "a.tar", [None, None]))
    assert [row["image_id"] for row in json.loads((folder / "captions.json").read_text())] == ["r0", "r1"]
    assert cider(folder, folder / "references.json") == result["metrics"]["CIDEr"]


def test_ids_that_come_twice_are_named(judged, tmp_path):
    doubled = [*range(7), *range(7)]
    with pytest.raises(ConfigError, match=r"7 image ids come more than once, first 0, 1, 2, 3, 4:"):
        judged(write_tar(tmp_path / "a.tar", doubled))


def test_answers_are_scored_from_both_files(judged, prepared, tmp_path):
    put(tmp_path / "images" / "000000000007.jpg", picture(7))
    asked = [{"image_id": 7, "question": f"Is it {n}?", "question_id": n} for n in (70, 71)]
    said = [{"image_id": 7, "question_id": n, "answers": [{"answer": "yes"}] * 10} for n in (70, 71)]
    questions = put(tmp_path / "questions_val2014.json", {"questions": asked})
    annotations = put(tmp_path / "annotations_val2014.json", {"annotations": said})
    shards = prepared("source=vqa", f"images={tmp_path}/images", f"questions={questions}", f"annotations={annotations}")
    folder, result = judged(shards / "val", "vqa")
    for predictions in ("answers.json", "predictions.jsonl"):
        again = score_files(tmp_path, folder / predictions, annotations, questions)["predictions"]
        assert again["metrics"]["accuracy"] == result["metrics"]["accuracy"]


def test_a_broken_line_of_predictions_is_named(tmp_path):
    broken = put(tmp_path / "p.jsonl", '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap')
    with pytest.raises(ConfigError, match=r"p\.jsonl: line 2: no valid JSON"):
        score_files(tmp_path, broken, put(tmp_path / "r.json", {"1": ["a"], "2": ["b"]}))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 200_000, "line 1: no valid JSON"),
        ('{"image_id": 1, "caption": "a \\ud800 b"}', "line 1: no valid JSON"),
        ('{"image_id": 1, "image_id": 2, "caption": "a"}', "line 1: ids stand more than once: image_id"),
    ],
    ids=["nested", "half a character", "doubled"],
)
def test_lines_of_somebody_elses_making_are_read_as_carefully_as_files(tmp_path, line, says):
    path = put(tmp_path / "p.jsonl", line)
    with pytest.raises(ConfigError, match=says):
        read_predictions(path)


def test_a_pipe_is_no_predictions(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_predictions(tmp_path / "p.jsonl")
