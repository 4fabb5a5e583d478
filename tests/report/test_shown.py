"""What the page shows of an image comes out of the runs' folders, as data."""

from __future__ import annotations

import base64
import io
import json
import os

import pytest
from PIL import Image

from tests.support.compared_runs import asked_run, captioned_run
from visllama.report.judged_run import read_runs
from visllama.report.paired import ImageDifference
from visllama.report.shown import Texts, ids_with_pictures, show

CIDER = [0.5, 1.5, 0.25]


def image(own_id, of=None):
    return ImageDifference(own_id, of or own_id, 0.5, 1.0)


def decode(address):
    kind, _, data = address.partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def texts_of(folder, evaluation="scenes", task="caption"):
    return Texts(read_runs([folder])[0], evaluation, task)


def test_captions_references_and_picture(tmp_path):
    """Markup is text, and the picture is that of the record whose id it is."""
    captioned_run(tmp_path / "a", CIDER, ["<b>one</b>", "two", "three"])
    captioned_run(tmp_path / "b", CIDER, ["eins", "zwei", "drei"])
    shown = show([image("100")], texts_of(tmp_path / "a"), texts_of(tmp_path / "b"))[0]
    assert (shown.first, shown.second, shown.question) == ("<b>one</b>", "eins", "")
    assert shown.references == ["reference 0", "another"]
    kind, picture = decode(shown.pictures[0])
    assert kind == "data:image/png" and picture.size == (160, 160) and picture.getpixel((0, 0)) == (0, 0, 0)
    other = show([image("102")], texts_of(tmp_path / "a"), texts_of(tmp_path / "b"))[0]
    assert decode(other.pictures[0])[1].getpixel((0, 0)) == (2, 0, 0)


def test_questions_are_told_apart_on_one_image(tmp_path):
    asked_run(tmp_path / "a", [0, 1, 1], ["i", "i", "j"], ["no", "maybe", "yes"])
    texts = texts_of(tmp_path / "a", "vqa", "vqa")
    shown = show([image("q0", "i"), image("q1", "i")], texts, texts)
    assert [each.question for each in shown] == ["what is <0>?", "what is <1>?"]
    assert [each.first for each in shown] == ["no", "maybe"] and shown[0].references == ["yes"]
    assert len(shown[0].pictures) == 1


def test_what_no_folder_holds_is_absent(tmp_path):
    captioned_run(tmp_path / "a", CIDER, num_shown=1)
    texts = texts_of(tmp_path / "a")
    assert len(ids_with_pictures([texts])) < 3 and ids_with_pictures([]) == set()
    shown = show([image("7")], texts, texts)[0]
    assert shown == (image("7"), [], "", None, None, [])


def test_the_gallery_of_one_run_is_enough(tmp_path):
    captioned_run(tmp_path / "a", CIDER)
    captioned_run(tmp_path / "b", CIDER)
    for name in ("gallery.html", "captions.json", "references.json"):
        (tmp_path / "a" / "evaluations" / "scenes" / name).unlink()
    shown = show([image("101")], texts_of(tmp_path / "a"), texts_of(tmp_path / "b"))[0]
    assert shown.first is None and shown.second == "caption 1" and len(shown.pictures) == 1


def test_a_run_of_files_names_them(tmp_path):
    captioned_run(tmp_path / "a", CIDER)
    place = tmp_path / "a" / "evaluations" / "scenes"
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    metrics["provenance"] |= {
        "predictions": str(place / "captions.json"),
        "references": str(place / "references.json"),
    }
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(metrics))
    texts = texts_of(tmp_path / "a", "predictions")
    shown = show([image("100")], texts, texts)[0]
    assert shown.first == "caption 0" and shown.references == ["reference 0", "another"] and shown.pictures == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:image/svg+xml;base64,PHN2Zy8+", "data:image/png;base64,AAAA"]
)  # fmt: skip
def test_what_is_no_picture_is_not_shown(tmp_path, address):
    captioned_run(tmp_path / "a", CIDER)
    page = f'<figure data-score="0.5" data-key="r0" data-id="100"><img src="{address}"><b>said</b></figure>'
    (tmp_path / "a" / "evaluations" / "scenes" / "gallery.html").write_text(page)
    texts = texts_of(tmp_path / "a")
    assert show([image("100")], texts, texts)[0].pictures == []


@pytest.mark.parametrize("content", ["[[", "[1]", '{"100": 3}', '[{"image_id": 100, "caption": 7}]'])
def test_files_of_another_layout_are_absent(tmp_path, content):
    captioned_run(tmp_path / "a", CIDER)
    place = tmp_path / "a" / "evaluations" / "scenes"
    (place / "captions.json").write_text(content)
    (place / "gallery.html").unlink()
    os.mkfifo(place / "gallery.html")
    texts = texts_of(tmp_path / "a")
    assert show([image("100")], texts, texts)[0].first is None


def test_long_texts_are_cut(tmp_path):
    captioned_run(tmp_path / "a", CIDER, ["x" * 5000, "b", "c"])
    texts = texts_of(tmp_path / "a")
    assert show([image("100")], texts, texts)[0].first == "x" * 1000 + "..."
