"""TextVQA's file, as it is published, beside the folders of its archives."""

from __future__ import annotations

import json

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.errors import ConfigError

ENTRY = {
    "question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901", "image_classes": ["Cassette deck"],
    "flickr_original_url": "https://farm2.staticflickr.com/x.jpg", "image_width": 1024, "image_height": 664,
    "answers": ["nous les gosses", "dakota", "clos culombu", *["dakota digital"] * 7],
    "question_tokens": ["what", "is"], "question_id": 34602, "set_name": "val",
}  # fmt: skip


def test_the_published_layout_is_read(run, tmp_path, capsys):
    """The pictures of validation lie in `train_images`."""
    put(tmp_path / "textvqa" / "train_images" / "003a8ae2ef43b901.jpg", picture(7))
    file = put(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": [ENTRY]})
    out = run("source=textvqa", f"images={tmp_path}/textvqa", f"annotations={file}")
    ((questions, images),) = read(out / "val").values()
    assert images == [picture(7)]
    assert questions == [
        {"question": ENTRY["question"], "answers": ENTRY["answers"], "answer": "dakota digital", "id": 34602}
    ]
    assert (
        capsys.readouterr()
        .out.rstrip()
        .endswith(
            "Judge on it:  visllama evaluate weights=RUN/weights 'evaluation=[textvqa]' evaluation.textvqa.split=val"
        )
    )


def test_a_name_that_leads_out_of_the_folder_is_never_read(run, tmp_path):
    put(tmp_path / "secret.jpg", picture(66))
    put(tmp_path / "images" / "003a8ae2ef43b901.jpg", picture(7))
    outside = ENTRY | {"image_id": "../secret", "question_id": 1}
    file = put(tmp_path / "TextVQA_0.5.1_val.json", {"data": [ENTRY, outside]})
    out = run("source=textvqa", f"images={tmp_path}/images", f"annotations={file}", "max_bad_fraction=0.5")
    assert [entry["reason"] for entry in skipped(out / "val")] == ["outside"]
    assert picture(66) not in (out / "val" / "00000.tar").read_bytes()


@pytest.mark.parametrize("content", [[ENTRY], {"questions": [ENTRY]}])
def test_another_layout_is_refused(run, tmp_path, content):
    (tmp_path / "images").mkdir()
    file = put(tmp_path / "TextVQA_0.5.1_val.json", json.dumps(content))
    with pytest.raises(ConfigError, match="not a TextVQA file: it has no list 'data'"):
        run("source=textvqa", f"images={tmp_path}/images", f"annotations={file}")
