"""COCO's layouts: Karpathy's file and the official ones."""

from __future__ import annotations

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.data.shards.source import ShardSource
from visllama.errors import ConfigError


def karpathy(tmp_path, entries):
    images = []
    for number, (split, below, captions) in enumerate(entries, start=1):
        name = f"COCO_{below}_{number:012d}.jpg"
        put(tmp_path / "images" / below / name, picture(number))
        images.append({"cocoid": number, "split": split, "filepath": below, "filename": name,
                       "sentences": [{"raw": caption} for caption in captions]})  # fmt: skip
    return images


def test_karpathys_restval_joins_train_and_captions_stay_together(run, tmp_path):
    entries = [("train", "train2014", ["a", "b "]), ("restval", "val2014", ["c"]), ("val", "val2014", ["d"]),
               ("test", "val2014", ["e", "f", "g", "h", "i"])]  # fmt: skip
    file = put(tmp_path / "dataset_coco.json", {"images": karpathy(tmp_path, entries), "dataset": "coco"})
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}")
    assert {k: v[0] for k, v in read(out / "train").items()} == {"000000000001": ["a", "b"], "000000000002": ["c"]}
    assert read(out / "val") == {"000000000003": (["d"], [picture(3)])}
    assert read(out / "test")["000000000004"] == (["e", "f", "g", "h", "i"], [picture(4)]), "bytes as they were"
    assert sorted(p.name for p in (out / "val").iterdir()) == [
        "00000.tar", "00000.tar.idx", "manifest.json", "plan.json", "skipped.jsonl",
    ]  # fmt: skip
    assert skipped(out / "val") == []


def test_one_split_of_karpathys(run, tmp_path):
    entries = [("train", "train2014", ["a"]), ("val", "val2014", ["d"])]
    file = put(tmp_path / "dataset_coco.json", {"images": karpathy(tmp_path, entries)})
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}", "split=val")
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["val"]
    with pytest.raises(ConfigError, match="split=test"):
        run("source=coco", f"images={tmp_path}/images", f"captions={file}", "split=test")


@pytest.mark.parametrize("layout", ["karpathy", "official"])
def test_a_file_of_2014_finds_its_pictures_in_the_archives_of_2017(run, tmp_path, layout):
    """Only these are to be had today: a picture has its id for a name, and many of val2014 lie in train2017."""
    entries = [("train", "train2014", ["a"]), ("restval", "val2014", ["b"]), ("val", "val2014", ["c"])]
    images = karpathy(tmp_path / "unused", entries)
    for number, folder in ((1, "train2017"), (2, "train2017"), (3, "val2017")):
        put(tmp_path / "images" / folder / f"{number:012d}.jpg", picture(number))
    content = {"images": images}
    if layout == "official":
        content = {
            "images": [{"id": image["cocoid"], "file_name": image["filename"]} for image in images],
            "annotations": [{"image_id": image["cocoid"], "caption": image["sentences"][0]["raw"]} for image in images],
        }
    file = put(tmp_path / "captions_train2014.json", content)
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}")
    found = read(out / "train") | (read(out / "val") if layout == "karpathy" else {})
    assert found == {f"{number:012d}": ([text], [picture(number)]) for number, text in ((1, "a"), (2, "b"), (3, "c"))}


def test_no_other_name_is_taken_for_one_of_2014(run, tmp_path):
    put(tmp_path / "images" / "train2017" / f"{5:012d}.jpg", picture(66))
    names = ["mine.jpg", f"COCO_train2014_{5:012d}.png", f"../COCO_train2014_{5:012d}.jpg", "COCO_val2014_5.jpg"]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names, 5)]
    annotations = [{"image_id": image["id"], "caption": "x"} for image in images]
    file = put(tmp_path / "captions_train2014.json", {"images": images, "annotations": annotations})
    with pytest.raises(ConfigError, match="4 of 4 records"):
        run("source=coco", f"images={tmp_path}/images", f"captions={file}")


def official(tmp_path, name: str, folder: str):
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (7, 5)]
    for image in images:
        put(tmp_path / folder / image["file_name"], picture(image["id"]))
    annotations = [{"id": n, "image_id": i, "caption": f"{n} of {i}\n"} for n, i in enumerate((5, 7, 5))]
    return put(tmp_path / name, {"info": {}, "images": images, "annotations": annotations})


@pytest.mark.parametrize("folder", ["images", "images/val2017"])
def test_an_official_file_tells_its_split(run, tmp_path, folder):
    file = official(tmp_path, "captions_val2017.json", folder)
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}")
    found = read(out / "val")
    assert {k: v[0] for k, v in found.items()} == {"000000000007": ["1 of 7"], "000000000005": ["0 of 5", "2 of 5"]}
    assert list(found) == ["000000000007", "000000000005"], "the file's order"


def test_the_image_folder_may_hold_links_to_cocos_own_folders(run, tmp_path):
    file = official(tmp_path, "captions_val2017.json", "elsewhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "val2017").symlink_to(tmp_path / "elsewhere")
    assert len(read(run("source=coco", f"images={tmp_path}/images", f"captions={file}") / "val")) == 2


def test_a_name_that_tells_no_split_needs_the_key(run, tmp_path):
    file = official(tmp_path, "mine.json", "images")
    with pytest.raises(ConfigError, match="give one of split=train"):
        run("source=coco", f"images={tmp_path}/images", f"captions={file}")
    out = run("source=coco", f"images={tmp_path}/images", f"captions={file}", "split=train", "name=mine")
    assert out.name == "mine" and len(read(out / "train")) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a JSON file"),
        ([], "is a list"),
        ({"info": 1}, "'info'"),
        ({"images": [{"id": 1}]}, "neither 'annotations'"),
        ({"images": [], "annotations": {}}, "no list 'annotations'"),
        ({"images": [], "annotations": []}, "no record"),
    ],
)
def test_a_wrong_layout_says_what_is_there(run, tmp_path, content, says):
    (tmp_path / "images").mkdir()
    file = put(tmp_path / "captions_train2017.json", content)
    with pytest.raises(ConfigError, match=says):
        run("source=coco", f"images={tmp_path}/images", f"captions={file}")
    assert not (tmp_path / "data").exists()


def test_bad_entries_are_counted_by_reason(run, tmp_path):
    file = official(tmp_path, "captions_val2017.json", "images")
    content = {
        "images": [{"id": 5, "file_name": f"{5:012d}.jpg"}, {"id": 5, "file_name": f"{5:012d}.jpg"}, {"id": "x"}, 3,
                   {"id": 8, "file_name": "gone.jpg"}, {"id": 9, "file_name": "x.jpg"}, {"id": -1}],
        "annotations": [{"image_id": 5, "caption": "five"}, {"image_id": 77, "caption": "x"}, None,
                        {"image_id": 8, "caption": "eight"}, {"image_id": 9, "caption": "  "}],
    }  # fmt: skip
    out = run("source=coco", f"images={tmp_path}/images", f"captions={put(file, content)}", "max_bad_fraction=1")
    assert sorted(e["reason"] for e in skipped(out / "val")) == sorted(
        ["duplicate", "id", "id", "id", "missing", "no caption", "no image", "no image"]
    )
    assert list(read(out / "val")) == ["000000000005"]


def test_nocaps_keeps_the_domain_of_each_image(run, tmp_path):
    """Its layout is COCO's, its pictures go by Open Images' ids."""
    domains = {0: "near-domain", 1: "in-domain", 2: "out-domain"}
    images = [
        {"id": number, "open_images_id": f"00{number}", "file_name": f"00{number}.jpg", "domain": domain, "license": 0}
        for number, domain in domains.items()
    ]
    for image in images:
        put(tmp_path / "images" / image["file_name"], picture(image["id"]))
    annotations = [{"image_id": number % 3, "id": number, "caption": f"caption {number}"} for number in range(30)]
    file = put(tmp_path / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    out = run("source=nocaps", f"images={tmp_path}/images", f"captions={file}")
    source = ShardSource("val", None, str(out / "val"))
    assert {source[i]["image_id"]: source[i]["type"] for i in range(3)} == domains
    assert all(len(source[i]["captions"]) == 10 for i in range(3))


def test_flickr30k_is_read_in_karpathys_layout(run, tmp_path, capsys):
    """Its images have neither `cocoid` nor `filepath`."""
    put(tmp_path / "flickr30k-images" / "1000092795.jpg", picture(5))
    image = {"sentids": [0], "imgid": 0, "sentences": [{"raw": "Two young guys.", "imgid": 0}], "split": "test",
             "filename": "1000092795.jpg"}  # fmt: skip
    file = put(tmp_path / "dataset_flickr30k.json", {"images": [image], "dataset": "flickr30k"})
    out = run("source=flickr30k", f"images={tmp_path}/flickr30k-images", f"captions={file}")
    assert read(out / "test") == {"000000000000": (["Two young guys."], [picture(5)])}
    assert "type" not in ShardSource("test", None, str(out / "test"))[0]
    assert "'evaluation=[flickr30k]' evaluation.flickr30k.split=test" in capsys.readouterr().out
