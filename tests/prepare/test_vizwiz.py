"""VizWiz-VQA's file, as it is published: a list, without ids of questions or of answers."""

from __future__ import annotations

import pytest

from tests.prepare.made import picture, put, read
from visllama.errors import ConfigError


def entry(number: int, *said: str, **more) -> dict:
    return {
        "image": f"VizWiz_val_{number:08d}.jpg", "question": "Ok. There is another picture I hope it is a better one.",
        "answers": [{"answer": text, "answer_confidence": "yes"} for text in said],
        "answer_type": "unanswerable", "answerable": 0, **more,
    }  # fmt: skip


def test_the_published_layout_is_read(run, tmp_path):
    said = ["unanswerable"] * 6 + ["unsuitable image", "unsuitable", "blurry", "unanswerable"]
    for number in (0, 1):
        put(tmp_path / "vizwiz" / "val" / f"VizWiz_val_{number:08d}.jpg", picture(number))
    file = put(tmp_path / "val.json", [entry(0, *said), entry(1, "basil", answer_type="other", answerable=1)])
    out = run("source=vizwiz", f"images={tmp_path}/vizwiz", f"annotations={file}")
    (first, images), (second, _) = read(out / "val").values()
    assert images == [picture(0)]
    assert first == [
        {"question": entry(0)["question"], "answers": said, "answer": "unanswerable",
         "id": "VizWiz_val_00000000.jpg", "answer_type": "unanswerable"}
    ]  # fmt: skip
    assert second[0]["answer_type"] == "other"


@pytest.mark.parametrize("content", [{"data": []}, [], [{"image_id": 3, "caption": "x"}]])
def test_another_layout_is_refused(run, tmp_path, content):
    (tmp_path / "images").mkdir()
    file = put(tmp_path / "val.json", content)
    with pytest.raises(ConfigError, match=r"not a VizWiz-VQA file: no list of \{image, question, answers\}"):
        run("source=vizwiz", f"images={tmp_path}/images", f"annotations={file}")
