"""Captions and references in the layouts of files that they come in."""

import json

import pytest

from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_predictions, read_references


def test_files_in_every_layout(tmp_path):
    def file(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    mapping = file("mapping.json", {"one": "a", "two": "b"})
    results = file("results.json", [{"image_id": 7, "caption": "a"}, {"image_id": "x", "caption": "b"}])
    assert read_predictions(mapping) == {"one": "a", "two": "b"}
    assert read_predictions(results) == {"7": "a", "x": "b"}
    coco = file(
        "coco.json",
        {
            "images": [{"id": 7}],
            "annotations": [{"image_id": 7, "caption": "a", "id": 1}, {"image_id": 7, "caption": "b", "id": 2}],
        },
    )
    assert read_references(coco) == {"7": ["a", "b"]}
    assert read_references(file("lists.json", {"x": ["a"]})) == {"x": ["a"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]', "more than once: 1"),
        ('{"1": "a", "1": "b"}', "more than once: 1"),
        ('[{"image_id": 1}]', "rows are not"),
        ('{"1": ["a"]}', "expected COCO results"),
        ("{", "no valid JSON"),
    ],
)
def test_bad_predictions_are_refused(tmp_path, content, says):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_predictions(tmp_path / "p.json")


@pytest.mark.parametrize("content", ['{"1": []}', '{"1": "a"}', "[]", '{"annotations": [{"caption": "a"}]}'])
def test_bad_references_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ConfigError, match=r"r\.json"):
        read_references(tmp_path / "r.json")
