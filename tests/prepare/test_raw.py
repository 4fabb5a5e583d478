"""Raw data: names of images that others wrote."""

from __future__ import annotations

from tests.prepare.made import picture, put, read, skipped


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
