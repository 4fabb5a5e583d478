"""Objects that captions name, and whether they are there."""

from __future__ import annotations

import json

import pytest

from visllama.errors import ConfigError
from visllama.evaluation.chair import ObjectNames, chair, chair_metrics, check_objects, object_names, read_objects


def test_there_are_cocos_80_categories():
    assert len(object_names().categories) == len(set(object_names().categories)) == 80


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Two men on Horses.", ["person", "horse"]),
        ("a dog eats a hot dog", ["dog", "hot dog"]),
        ("a teddy bear beside a bear", ["teddy bear", "bear"]),
        ("wine glasses, knives and sandwiches", ["wine glass", "knife", "sandwich"]),
        ("puppies, children, buses and benches", ["dog", "person", "bus", "bench"]),
        ("nothing is to be seen here", []),
        ("", []),
    ],
)
def test_words_name_their_category(caption, found):
    assert object_names().mentioned(caption) == found


def test_what_is_neither_drawn_nor_told_is_absent():
    """Of three captions one names an absent object: of five names one is absent."""
    found = chair(
        ["a man with a dog", "a cat", "a cat on a bed"],
        [["somebody with a puppy"], ["a pet"], ["a cat"]],
        [frozenset({"person"}), frozenset({"cat"}), frozenset({"cat"})],
        object_names(),
    )
    assert found.absent == [[], [], ["bed"]]
    assert chair_metrics(found.counts)["CHAIRs"].value == pytest.approx(1 / 3)
    assert chair_metrics(found.counts)["CHAIRi"].value == pytest.approx(1 / 5)


def test_captions_that_name_nothing_have_no_absent_names():
    counts = chair(["hm"], [["a cat"]], [frozenset()], object_names()).counts
    assert chair_metrics(counts)["CHAIRi"].value == 0


@pytest.fixture
def instances(tmp_path):
    def write(**changed):
        content = {
            "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
            "images": [{"id": 7}, {"id": 8}],
            "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 1}],
        }
        path = tmp_path / "instances_val2014.json"
        path.write_text(json.dumps(content | changed))
        return path

    return write


def test_instances_are_read(instances):
    assert read_objects(instances(), object_names()) == {"7": frozenset({"dog", "person"}), "8": frozenset()}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"categories": None}, "no instance annotations of COCO"),
        ({"annotations": [{"image_id": 9, "category_id": 1}]}, "no instance annotations"),
        (
            {"categories": [{"id": 1, "name": "unicorn"}, {"id": 18, "name": "dog"}]},
            "1 categories have no names, first unicorn",
        ),
    ],
)
def test_what_is_no_instances_is_refused(instances, changed, says):
    with pytest.raises(ConfigError, match=says):
        read_objects(instances(**changed), object_names())


def test_images_of_another_split_are_named():
    with pytest.raises(ConfigError, match="2 images are not in it, first 8, 9"):
        check_objects([7, 8, "9"], {"7": frozenset()}, "evaluation.coco_karpathy.objects=x.json")


def test_another_list_of_names(tmp_path):
    (tmp_path / "names.txt").write_text("dog, hound\ncat, moggy\n")
    names = ObjectNames(tmp_path / "names.txt")
    assert names.categories == ["dog", "cat"] and names.mentioned("a moggy and hounds") == ["cat", "dog"]
    (tmp_path / "names.txt").write_text("dog, pet\ncat, pet\n")
    with pytest.raises(ConfigError, match="'pet' stands for dog and for cat"):
        ObjectNames(tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="no list of objects"):
        ObjectNames(tmp_path / "nowhere.txt")
