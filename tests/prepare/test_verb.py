"""The verb: what a person types, reads, and finds; downloads handed on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from webdataset import TarWriter

from tests.prepare.made import picture, put, read, table
from visllama.prepare import verb


def visllama(*arguments: object, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_program_writes_shows_and_names_the_next_command(tmp_path):
    file, work = table(tmp_path), tmp_path / "work"
    work.mkdir()
    ended = visllama("source=folder", f"images={tmp_path}/images", f"table={file}", "name=photos", cwd=work)
    assert ended.returncode == 0, ended.stderr
    assert len(read(work / "data" / "photos" / "train")) == 3
    assert "visllama train data=shards data.sources.shards.path=data/photos/train" in ended.stdout
    assert "Prepared" in ended.stdout and "nothing" in ended.stdout
    assert sorted(os.listdir(work)) == ["data"], "no run folder, no log"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("source=cooc", "source=cooc: did you mean"),
        ("source=folder imgaes=x", "imgaes: there is no such key. Did you mean images?"),
        ("images=x", "images: source=scenes has no such key; source=coco"),
        ("source=folder images=. table=t.csv max_bad_fraction=0", "2 of 3 records (66.7%) are bad"),
        ("source=folder images=. table=no.csv", "table=no.csv: no such file"),
    ],
)
def test_the_program_ends_with_a_message_and_leaves_nothing(tmp_path, typed, says):
    put(tmp_path / "t.csv", "image,caption\na.jpg,x\nb.jpg,x\n../c.jpg,y\n" if "=0" not in typed else
        "image,caption\na.jpg,x\nb.jpg,x\nc.jpg,y\n")  # fmt: skip
    put(tmp_path / "c.jpg", picture())
    ended = visllama(*typed.split(), cwd=tmp_path)
    assert ended.returncode == 2 and says in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and sorted(os.listdir(tmp_path)) == ["c.jpg", "t.csv"]


def test_without_a_source_it_names_them_and_does_nothing(tmp_path):
    ended = visllama(cwd=tmp_path)
    assert ended.returncode == 2 and list(tmp_path.iterdir()) == []
    for source in ("cc3m", "coco", "coyo", "folder", "instruct", "scenes", "shards", "vqa"):
        assert f"\n  visllama prepare source={source} " in ended.stderr
    assert max(map(len, ended.stderr.splitlines())) <= 80


def test_out_takes_the_splits(run, tmp_path):
    run("source=folder", f"images={tmp_path}/images", f"table={table(tmp_path)}", f"out={tmp_path}/mine", "split=val")
    assert len(read(tmp_path / "mine" / "val")) == 3 and not (tmp_path / "data").exists()


def told(capsys) -> str:
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_coco_by_its_name_is_what_data_finds(run, tmp_path, capsys):
    images = [{"cocoid": n, "split": split, "filename": f"{n}.jpg", "sentences": [{"raw": "x"}]}
              for n, split in enumerate(("train", "val", "test"))]  # fmt: skip
    for image in images:
        put(tmp_path / "images" / image["filename"], picture())
    call = (
        "source=coco",
        f"images={tmp_path}/images",
        f"captions={put(tmp_path / 'dataset_coco.json', {'images': images})}",
    )
    run(*call, "split=val")
    assert told(capsys).endswith(f"evaluation.shards_caption.source.val_path={tmp_path}/data/coco/val")
    run(*call, "split=train")
    assert told(capsys).endswith("visllama train data=coco evaluation=none"), "there is no test split to judge on"
    run(*call)
    assert told(capsys).endswith("visllama train data=coco")


FAKE = """#!{python}
import io, json, pathlib, sys, tarfile
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(options["--output_folder"])
rows = [json.loads(line) for file in sorted(pathlib.Path(options["--url_list"]).glob("*.jsonl")) for line in file.open()]
picture = pathlib.Path(__file__).with_name("picture.jpg").read_bytes()
with tarfile.open(out / "00000.tar", "w") as tar:
    for i, row in enumerate(rows):
        for suffix, data in (("jpg", picture), ("txt", row["caption"].encode()), ("json", json.dumps(row).encode())):
            member = tarfile.TarInfo(f"{{i:09d}}.{{suffix}}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
(out / "00000_stats.json").write_text(json.dumps({{"count": len(rows), "successes": len(rows), "status_dict": {{"success": len(rows)}}}}))
"""


@pytest.fixture
def cc3m(tmp_path):
    put(tmp_path / "fake" / "picture.jpg", picture())
    command = put(tmp_path / "fake" / "img2dataset", FAKE.format(python=sys.executable))
    command.chmod(0o755)
    rows = put(tmp_path / "list.tsv", "".join(f"caption {n}\thttps://example.com/{n}.jpg\n" for n in range(6)))
    return "source=cc3m", f"list={rows}", f"command={command}"


def test_a_list_is_downloaded_and_indexed(run, cc3m, capsys):
    out = run(*cc3m)
    assert [text for text, _ in read(out / "train").values()] == [[f"caption {n}"] for n in range(6)]
    assert told(capsys).startswith("Train on it:  visllama train data=cc3m")


def test_a_list_in_parts_is_indexed_when_it_is_merged(run, cc3m, capsys):
    for part in ("1/2", "2/2"):
        out = run(*cc3m, f"part={part}")
        assert "merge=true" in told(capsys) and not (out / "train" / "manifest.json").exists()
    run(*cc3m, "part=2/2", "merge=true")
    manifest = json.loads((out / "train" / "manifest.json").read_text())
    assert manifest["num_records"] == 6 and manifest["shards"]["name"] == ["00000.tar", "00001.tar"]


def test_scenes_go_their_old_way(configure, monkeypatch):
    from visllama.prepare import scenes

    monkeypatch.setattr(
        scenes,
        "prepare",
        lambda config: {"seen": config.keys["prepare"]["vocab_size"], "threads": config.keys["threads"]},
    )
    assert verb.prepare(configure("prepare", "out=pair")) == {"seen": 480, "threads": 1}


def test_what_is_damaged_in_tars_that_are_there_is_listed(tmp_path):
    with TarWriter(str(tmp_path / "a.tar"), mtime=0) as tar:
        for i in range(5):
            tar.write({"__key__": f"{i}", "jpg": picture(i), "json": {"captions": ["x"]} if i != 3 else {"url": "x"}})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[150] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    ended = visllama("source=shards", f"from={tmp_path}/a.tar", "check_only=true", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"{tmp_path}/a.tar: " in ended.stdout and "(byte 0, header)" in ended.stdout
    assert "record '3' has no captions" in ended.stdout and "1 tars, 3 records, 3 faults" in ended.stdout
    assert os.listdir(tmp_path) == ["a.tar"], "nothing is written"
