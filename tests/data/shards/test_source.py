"""Tars as webdataset writes them, and what is wrong with those that it did not."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support.tars import keys, members, picture, scored, whole, write
from visllama.data.shards.source import ShardSource
from visllama.data.source import count_items
from visllama.errors import BadRecord, ConfigError
from visllama.images.decode import open_image


def test_reads_what_webdataset_writes(tmp_path):
    source = whole(write(tmp_path / "a.tar"))
    assert len(source) == 4 and count_items(source) == 8
    record = source[2]
    assert record["key"] == "0002" and record["captions"] == ["number 2", "a gray 2"]
    image = open_image(record["image"])
    assert image.size == (20, 10) and max(image.getpixel((3, 3))) <= 4
    assert source[3]["key"] == "0003" and source[0]["key"] == "0000", "in any order"


def test_a_folder_a_list_of_names_and_a_pattern_name_the_same_tars(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i:05d}.tar", 2, 2 * i)
    for path in (tmp_path, f"{tmp_path}/{{00000..00002}}.tar", f"{tmp_path}/*.tar"):
        assert keys(whole(str(path))) == [f"{i // 2:05d}/{i:04d}" for i in range(6)]


def test_validation_has_tars_of_its_own_where_they_are_given(tmp_path):
    train, val = write(tmp_path / "a.tar"), write(tmp_path / "b.tar", 2, 7)
    assert keys(ShardSource("val", train, val)) == keys(ShardSource("test", train, val)) == ["0007", "0008"]
    assert keys(ShardSource("train", train, val)) == ["0000", "0001", "0002", "0003"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("a.jpg", picture())], "record 'a' has no captions"),
        ([("a.txt", b"words")], "record 'a' has captions and no image"),
        ([("a.jpg", picture()), ("a.txt", b" \n")], "record 'a' has an empty caption"),
        ([("a.jpg", picture()), ("a.json", b'{"captions": ["x", ""]}')], "record 'a' has an empty caption"),
        ([("a.jpg", picture()), ("a.json", b'{"captions": "x"}')], "record 'a' has no captions"),
        ([("a.jpg", picture()), ("a.json", b"{")], "record 'a' cannot be read"),
        ([("a.jpg", picture()), ("a.txt", b"\xff\xfe")], "record 'a' cannot be read"),
        ([("a.jpg", picture()), ("a.txt", b"x"), ("a.txt", b"y")], "record 'a' has two members of one suffix"),
        ([], "hold no record"),
    ],
)
def test_where_no_record_is_whole_what_is_wrong_is_named(tmp_path, files, says):
    with pytest.raises(ConfigError, match=says):
        whole(members(tmp_path / "a.tar", *files))


def test_an_image_that_cannot_be_decoded_is_found_when_it_is_decoded(tmp_path):
    source = whole(members(tmp_path / "a.tar", ("k.jpg", b"no picture"), ("k.txt", b"words")))
    with pytest.raises(BadRecord, match="format: no JPEG, PNG or WebP"):
        open_image(source[0]["image"])


def test_a_damaged_header_is_counted_and_what_follows_is_read(tmp_path):
    """tarfile, and so webdataset, would give one record of four without a word (data.md, fact 1).

    Record 0001 is lost, and 0000 before it is not trusted: the damaged header may have been a member of it.
    """
    path = write(tmp_path / "a.tar")
    content = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[2].offset
    content[header + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    source = whole(path)
    assert keys(source) == ["0002", "0003"] and source.faults == {"header": 1, "torn": 2}


def test_a_tar_cut_short_gives_what_is_whole(tmp_path):
    path = write(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:7001])
    source = whole(path)
    assert 0 < len(source) < 4 and source.faults


def test_a_filter_chooses_by_the_scores_in_the_index(tmp_path):
    scored(tmp_path / "a.tar", [{"clip": 0.2, "mark": 0.1}, {"clip": 0.4, "mark": 0.9}, {"clip": 0.5, "mark": 0.2}], 2)
    scored(tmp_path / "b.tar", [{"clip": 0.31}, {"clip": 0.3, "mark": 0.5}, {}])
    filter = {"clip": [0.3, None], "mark": [None, 0.5]}
    source = whole(str(tmp_path), filter=filter)
    assert keys(source) == ["a/0002", "b/0001"] and count_items(source) == 3, "a record without a score is in no range"
    assert len(ShardSource("val", None, str(tmp_path), filter=filter)) == 6, "validation is not filtered"
    assert source.fingerprint != whole(str(tmp_path)).fingerprint
    with pytest.raises(ConfigError, match=r"no record that passes filter=.*scores are clip, mark"):
        whole(str(tmp_path), filter={"clipp": [0.3, None]})
    with pytest.raises(ConfigError, match=r"filter\.clip=0\.3: give \[least, most\]"):
        whole(str(tmp_path), filter={"clip": 0.3})


@pytest.mark.parametrize("path", ["/no/where.tar", "pipe:cat x.tar", "s3://b/x.tar", "ftp://h/x.tar", None])
def test_what_is_not_there_or_not_local_is_refused(path):
    with pytest.raises(ConfigError, match=r"path|s3fs"):
        whole(path)


def test_a_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_text("words " * 200)
    with pytest.raises(ConfigError, match=r"hold no record; .*a\.tar: 1200 bytes are skipped \(byte 0, header\)"):
        whole(str(tmp_path / "a.tar"))


def test_tars_that_each_count_from_zero_keep_their_records_apart(tmp_path):
    """Equal keys would fall together where captions are scored by key."""
    write(tmp_path / "a.tar", 2)
    write(tmp_path / "b.tar", 2)
    assert keys(whole(str(tmp_path))) == ["a/0000", "a/0001", "b/0000", "b/0001"]


def test_two_tars_in_one_file_are_read_but_at_their_joint(tmp_path):
    """Where zeros stand inside a tar, members may have been lost: the records on both sides are not trusted."""
    content = b"".join(Path(write(tmp_path / f"{i}.tar", 3, 3 * i)).read_bytes() for i in range(2))
    (tmp_path / "both.tar").write_bytes(content)
    source = whole(str(tmp_path / "both.tar"))
    assert keys(source) == ["0000", "0001", "0004", "0005"] and source.faults == {"zeros": 1, "torn": 2}


def test_captions_are_of_one_image(tmp_path):
    files = ("k.jpg", picture()), ("k.png", picture(kind="PNG")), ("k.txt", b"words")
    source = whole(members(tmp_path / "a.tar", *files))
    with pytest.raises(BadRecord, match=r"record 'k' has captions of 2 images"):
        source[0]


def test_only_files_called_tar_are_indexed(tmp_path):
    """An index is written beside them: not beside whatever a path may name."""
    (tmp_path / "passwd").write_text("root")
    with pytest.raises(ConfigError, match=r"passwd is no \.tar"):
        whole(str(tmp_path / "passwd"))
    assert [path.name for path in tmp_path.iterdir()] == ["passwd"]
