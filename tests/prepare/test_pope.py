"""POPE's three files, as they are published: JSON lines, each counting its questions from one."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.errors import ConfigError

IMAGE = "COCO_val2014_000000310196.jpg"


def lines(*labels: str, image: str = IMAGE) -> str:
    rows = [
        {"question_id": number, "image": image, "text": f"Is there a thing {number} in the image?", "label": label}
        for number, label in enumerate(labels, start=1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def published(tmp_path, **files: str):
    put(tmp_path / "coco" / "val2014" / IMAGE, picture(3))
    for kind, content in files.items():
        put(tmp_path / "pope" / f"coco_pope_{kind}.json", content)
    return "source=pope", f"images={tmp_path}/coco"


def test_three_files_become_one_record_an_image_with_a_type_a_question(run, tmp_path, capsys, compose_config):
    both = lines("yes", "no")
    found = published(tmp_path, random=both, popular=both, adversarial=both)
    out = run(*found, f"annotations={tmp_path}/pope")
    ((questions, images),) = read(out / "test").values()
    assert images == [picture(3)]
    assert [(question["id"], question["type"], question["answers"]) for question in questions] == [
        ("random/1", "random", ["yes"]), ("random/2", "random", ["no"]), ("popular/1", "popular", ["yes"]),
        ("popular/2", "popular", ["no"]), ("adversarial/1", "adversarial", ["yes"]), ("adversarial/2", "adversarial", ["no"]),
    ]  # fmt: skip
    command = capsys.readouterr().out.rstrip().splitlines()[-1]
    words = shlex.split(command.partition(" evaluate ")[2])
    cfg = compose_config("evaluate", *words, f"paths.data={tmp_path}/data")
    assert cfg.evaluation.pope.source.val_path == str(out / "test")


def test_one_of_the_files_alone(run, tmp_path):
    found = published(tmp_path, popular=lines("no"))
    out = run(*found, f"annotations={tmp_path}/pope/coco_pope_popular.json")
    ((questions, _),) = read(out / "test").values()
    assert [question["id"] for question in questions] == ["popular/1"]


def test_what_is_missing_or_of_another_layout_is_refused(run, tmp_path):
    found = published(tmp_path, random=lines("yes"), popular=lines("yes"))
    with pytest.raises(ConfigError, match=r"coco_pope_adversarial.json: no such file"):
        run(*found, f"annotations={tmp_path}/pope")
    with pytest.raises(ConfigError, match="its name does not say which file of POPE it is"):
        run(*found, f"annotations={put(tmp_path / 'pope.json', lines('yes'))}")
    put(tmp_path / "pope" / "coco_pope_adversarial.json", [{"label": "yes"}])
    with pytest.raises(ConfigError, match=r"coco_pope_adversarial.json: not a POPE file"):
        run(*found, f"annotations={tmp_path}/pope")


def test_lines_that_are_no_questions_are_counted(run, tmp_path):
    broken = lines("yes", "perhaps") + "{not JSON\n" + lines("no", image="../../secret.jpg")
    found = published(tmp_path, random=broken)
    out = run(*found, f"annotations={tmp_path}/pope/coco_pope_random.json", "max_bad_fraction=0.8")
    assert [(entry["where"], entry["reason"]) for entry in skipped(out / "test")] == [
        ("coco_pope_random.json:2", "label"), ("coco_pope_random.json:3", "label"), ("coco_pope_random.json:4", "duplicate"),
    ]  # fmt: skip
