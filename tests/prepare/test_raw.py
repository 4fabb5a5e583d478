"""Raw data: names of images that others wrote."""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.errors import ConfigError
from visllama.prepare import verb
from visllama.prepare.raw import RawSplit


def test_hostile_names_are_refused_and_never_read(run, tmp_path, monkeypatch):
    secret = put(tmp_path / "secret.jpg", picture(66))
    names = ["../secret.jpg", str(secret), "/etc/passwd", "a/../../secret.jpg", "link.jpg", "below/secret.jpg", "dir.jpg",
             "", None, 3, "~/x.jpg", "nul\0.jpg", "..\\secret.jpg", "\ud800.jpg", "x" * 300]  # fmt: skip
    put(tmp_path / "images" / "good.jpg", picture(1))
    (tmp_path / "images" / "link.jpg").symlink_to(secret)
    (tmp_path / "images" / "below").symlink_to(tmp_path)
    (tmp_path / "images" / "dir.jpg").mkdir()
    names.append("good.jpg")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    annotations = [{"id": i, "image_id": i, "caption": "x"} for i in range(len(names))]
    file = put(tmp_path / "captions_train2017.json", {"images": images, "annotations": annotations})
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}", "max_bad_fraction=1")
    assert {key: images for key, (_, images) in read(out / "train").items()} == {f"{len(names) - 1:012d}": [picture(1)]}
    reasons = [entry["reason"] for entry in skipped(out / "train")]
    assert reasons == ["outside"] * 6 + ["no file"] + ["outside"] * 6 + ["missing", "unreadable"]
    assert picture(66) not in (out / "train" / "00000.tar").read_bytes()


@pytest.mark.parametrize(
    ("source", "key", "file"),
    [
        ("instruct", "conversations", "a.json"),
        ("instruct", "conversations", "a.jsonl"),
        ("pope images=.", "annotations", "coco_pope_random.json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_by_its_key(run, tmp_path, monkeypatch, source, key, file):
    put(tmp_path / file, "{}")

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(ConfigError, match=rf"{key}=.*{file}: cannot be read \(Permission denied\)"):
        run(*f"source={source}".split(), f"{key}={tmp_path}/{file}")


def test_what_a_reader_has_read_is_not_held_while_shards_are_written(run, tmp_path, monkeypatch):
    put(tmp_path / "images" / "a.jpg", picture(1))
    put(tmp_path / "t.csv", "image,caption\na.jpg,a thing\n")
    splits = []

    def lay_out(split: RawSplit, *rest):
        splits.append(weakref.ref(split))
        return original(split, *rest)

    def write_split(*_):
        gc.collect()
        assert [split() for split in splits] == [None]
        raise ConfigError("looked")

    original = verb.lay_out
    monkeypatch.setattr(verb, "lay_out", lay_out)
    monkeypatch.setattr(verb, "write_split", write_split)
    with pytest.raises(ConfigError, match="looked"):
        run("source=folder", f"images={tmp_path}/images", f"table={tmp_path}/t.csv")
