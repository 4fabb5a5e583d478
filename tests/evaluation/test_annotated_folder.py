"""A folder of pictures with COCO's or VQA's files: how a picture is found, and what is refused before it is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.photos import saved
from visllama.data.sources import fingerprint
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.annotated_folder import AnnotatedFolder


@pytest.fixture
def put(tmp_path):
    """Write a picture of a shade, or a file of JSON, below the test's folder."""

    def put(name: str, content: int | dict | list) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(saved(Image.new("RGB", (20, 10), (content, 0, 0))))
        else:
            path.write_text(json.dumps(content))
        return path

    return put


def coco(*images: dict, captions: int = 2) -> dict:
    """Return an annotation file in which each image has some captions."""
    ids = [image["id"] for image in images for _ in range(captions)]
    annotations = [{"id": n, "image_id": image, "caption": f"{n} of {image}"} for n, image in enumerate(ids)]
    return {"images": list(images), "annotations": annotations}


def vqa(*asked: tuple) -> tuple[dict, dict]:
    """Return VQA's two files of questions `(question_id, image_id)`."""
    questions = [{"question_id": key, "image_id": image, "question": f"{key}?"} for key, image in asked]
    answers = [{"answer": "yes"}, {"answer": "no"}]
    annotations = [
        {"question_id": key, "image_id": image, "answers": answers, "answer_type": "yes/no"} for key, image in asked
    ]
    return {"questions": questions}, {"annotations": annotations}


# ------------------------------------------------------------------------------------------------------ captions


def test_captions_are_found_by_the_names_of_cocos_images(put, tmp_path):
    put("pictures/a.jpg", 10), put("pictures/below/b.png.jpg", 20)
    file = put(
        "r.json",
        coco({"id": 7, "file_name": "below/b.png.jpg", "domain": "near-domain"}, {"id": 3, "file_name": "a.jpg"}),
    )
    source = AnnotatedFolder("test", str(tmp_path / "pictures"), str(file))
    first, second = source[0], source[1]
    assert first.pop("image") == (tmp_path / "pictures" / "below" / "b.png.jpg").read_bytes()
    assert first == {"key": "7", "image_id": 7, "captions": ["0 of 7", "1 of 7"], "type": "near-domain"}
    assert (second["image_id"], "type" in second) == (3, False)
    assert len(source) == 2 and source.kinds == {"captions": 2} and source.read(1)["captions"] == ["2 of 3", "3 of 3"]


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("42", "val2014/COCO_val2014_000000000042.jpg"), ("42", "COCO_train2014_000000000042.jpg"),
        ("42", "val2017/000000000042.jpg"), ("42", "42.jpg"), ("0013ea", "0013ea.png"), ("a b.webp", "a b.webp"),
        ("a.b", "a.b.jpeg"),
    ],
)  # fmt: skip
def test_a_picture_without_a_file_name_is_named_by_its_id(put, tmp_path, key, file):
    put(f"pictures/{file}", 10)
    source = AnnotatedFolder("val", str(tmp_path / "pictures"), str(put("r.json", {key: ["said"]})))
    assert source[0]["image_id"] == key and source[0]["captions"] == ["said"]


def test_pictures_of_2014_are_found_in_the_archives_of_2017(put, tmp_path):
    put("coco/train2017/000000000042.jpg", 10)
    file = put("r.json", coco({"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}))
    assert len(AnnotatedFolder("val", str(tmp_path / "coco"), str(file))) == 1


def test_missing_pictures_are_named_with_what_was_looked_for(put, tmp_path):
    put("pictures/0.jpg", 10)
    file = put("r.json", {str(number): ["said"] for number in range(8)})
    with pytest.raises(ConfigError) as error:
        AnnotatedFolder("test", str(tmp_path / "pictures"), str(file))
    lines = str(error.value).splitlines()
    assert "7 of 8 pictures are not to be had from it, or from train2014, val2014" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:]] == ["  '1'", "  '2'", "  '3'", "  '4'", "  '5'"]
    assert "'COCO_val2014_000000000001.jpg'" in lines[1] and lines[1].endswith("'1.jpg', '1.jpeg', '1.png', '1.webp'")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "link.jpg", "below/secret.jpg", "dir.jpg", "", 3, "~/x.jpg"]
)
def test_no_name_leads_out_of_the_folder(put, tmp_path, name):
    put("secret.jpg", 66)
    (tmp_path / "pictures" / "dir.jpg").mkdir(parents=True)
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "pictures" / "below").symlink_to(tmp_path)
    file = put("r.json", coco({"id": 1, "file_name": name}))
    with pytest.raises(ConfigError, match="1 of 1 pictures are not to be had"):
        AnnotatedFolder("test", str(tmp_path / "pictures"), str(file))


def test_no_id_leads_out_of_the_folder(put, tmp_path):
    put("secret.jpg", 66), put("pictures/a.jpg", 10)
    for key in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(ConfigError, match="is no path below the image folder"):
            AnnotatedFolder("test", str(tmp_path / "pictures"), str(put("r.json", {key: ["said"]})))


def test_a_picture_that_becomes_a_link_later_is_not_followed(put, tmp_path):
    picture = put("pictures/a.jpg", 10)
    source = AnnotatedFolder("test", str(tmp_path / "pictures"), str(put("r.json", {"a": ["said"]})))
    picture.unlink()
    picture.symlink_to(put("secret.jpg", 66))
    with pytest.raises(BadRecord, match=r"a\.jpg"):
        source[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"image_id": 1, "caption": "x"}], "expected a COCO captions annotation file or a mapping"),
        ({"images": [], "annotations": []}, "holds no captions"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}, "an annotation without image_id and caption"),
        (coco({"id": 1}, {"id": 1}), r"1 ids stand more than once in 'images' of references=.*, first 1$"),
        ({"images": [{"id": 9}], "annotations": [{"image_id": n, "caption": "x"} for n in range(7)]},
         r"7 images of .* have captions, and no entry in its 'images', first 0, 1, 2, 3, 4$"),
        ({"images": [{"id": n} for n in range(7)], "annotations": [{"image_id": 0, "caption": "x"}]},
         r"6 images of references=.* have no caption, first 1, 2, 3, 4, 5$"),
    ],
)  # fmt: skip
def test_files_of_another_layout_or_with_wrong_ids_are_refused(put, tmp_path, content, says):
    put("pictures/1.jpg", 10)
    with pytest.raises(ConfigError, match=says):
        AnnotatedFolder("test", str(tmp_path / "pictures"), str(put("r.json", content)))


def test_there_are_no_training_records(put, tmp_path):
    put("pictures/a.jpg", 10)
    with pytest.raises(ConfigError, match="hold no training records"):
        AnnotatedFolder("train", str(tmp_path / "pictures"), str(put("r.json", {"a": ["said"]})))
    with pytest.raises(ConfigError, match=r"images=.*nowhere: no such folder"):
        AnnotatedFolder("val", str(tmp_path / "nowhere"), str(put("r.json", {"a": ["said"]})))


def test_the_fingerprint_tells_other_references_and_pictures(put, tmp_path):
    """It is part of what a judgement may go on from: another data set is refused there."""
    put("pictures/a.jpg", 10)

    def made(content: dict) -> str:
        return fingerprint(AnnotatedFolder("test", str(tmp_path / "pictures"), str(put("r.json", content))))

    first = made({"a": ["said"]})
    assert made({"a": ["said"]}) == first and made({"a": ["other"]}) != first
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"another size")
    assert made({"a": ["said"]}) != first


# ----------------------------------------------------------------------------------------------------- questions


def test_questions_on_one_picture_are_one_record(put, tmp_path):
    put("pictures/val2014/COCO_val2014_000000000042.jpg", 10), put("pictures/7.jpg", 20)
    questions, annotations = vqa((420, 42), (70, 7), (421, 42))
    files = str(put("a.json", annotations)), str(put("q.json", questions))
    source = AnnotatedFolder("val", str(tmp_path / "pictures"), *files)
    assert source.kinds == {"questions": 2} and source.item_counts == [2, 1]
    record = source.read(0)
    assert (record["key"], record["image_id"]) == ("42", 42)
    assert record["questions"][1] == {
        "question": "421?", "answers": ["yes", "no"], "id": 421, "answer_type": "yes/no"
    }  # fmt: skip


def test_questions_and_annotations_that_do_not_join_are_refused(put, tmp_path):
    put("pictures/1.jpg", 10)
    questions, _ = vqa(*((number, 1) for number in range(7)))
    _, annotations = vqa((0, 1))
    files = str(put("a.json", annotations)), str(put("q.json", questions))
    with pytest.raises(ConfigError, match=r"6 questions of .* have no annotation in .*, first 1, 2, 3, 4, 5$"):
        AnnotatedFolder("val", str(tmp_path / "pictures"), *files)
    with pytest.raises(ConfigError, match="expected VQA questions"):
        AnnotatedFolder("val", str(tmp_path / "pictures"), *reversed(files))
