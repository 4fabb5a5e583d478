"""The walk over a tar's headers against Python's tarfile, and against what is damaged."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tar_headers import END, WORDS, file, header, index, pax, places, reasons, record
from visllama.data.shards.index import index_shard, lost_keys
from visllama.data.shards.tar import BLOCK, header_size

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="./\\\x7f", exclude_categories=("Cc", "Cs")), min_size=1, max_size=180),
        min_size=1, max_size=4, unique=True,
    ),
    folder=st.sampled_from(["", "a/", "a.b/c/", "long/" * 25]),
    size=st.integers(0, 3 * BLOCK),
)  # fmt: skip
def test_places_and_names_are_those_of_tarfile(tmp_path, format, keys, folder, size):
    path, written = tmp_path / "x.tar", {}
    with tarfile.open(path, "w", format=FORMATS[format]) as tar:
        for i, key in enumerate(keys):
            for suffix, content in (("jpg", bytes(size + i)), ("json", WORDS)):
                info = tarfile.TarInfo(f"{folder}{key}.{suffix}")
                info.size = len(content)
                try:
                    tar.addfile(info, io.BytesIO(content))
                except ValueError:  # a name that ustar cannot hold
                    return
    with tarfile.open(path) as tar:
        written = {info.name: (info.offset_data, info.size) for info in tar}
    found = index(tmp_path, path.read_bytes())
    assert places(found) == written and not found.faults


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": b""},  # before 1988
        {"magic": b"ustar  \0"},
        {"kind": b"\0"},
        {"kind": b"7"},
    ],
    ids=str,
)
def test_older_headers_are_read(tmp_path, fields):
    found = index(tmp_path, record("a", **fields) + record("b", **fields) + END)
    assert found.keys() == ["a", "b"] and not found.faults


def test_sizes_in_base_256_names_in_parts_and_folders_are_read(tmp_path):
    picture = file("a.jpg", b"12345", size=b"\x80" + (5).to_bytes(11, "big"))
    text = file("a.json", prefix=b"in/the.folder")
    content = header("in/", 0, b"5") + file("x.jpg", prefix=b"in/the.folder") + file("x.json", prefix=b"in/the.folder")
    found = index(tmp_path, picture + file("a.json") + content + END)
    assert found.keys() == ["a", "in/the.folder/x"] and not found.faults
    assert found.members(0)["jpg"][:2] == (BLOCK, 5) and text[345:358] == b"in/the.folder"


def test_suffixes_are_in_lower_case_and_keys_end_at_the_first_dot(tmp_path):
    found = index(tmp_path, file("./a.b/c.0.JPG") + file("./a.b/c.1.png") + file("./a.b/c.Json") + END)
    assert found.keys() == ["a.b/c"] and [*found.members(0)] == ["0.jpg", "1.png", "json"]


def test_a_member_larger_than_any_picture_is_a_fault(tmp_path):
    with open(tmp_path / "x.tar", "wb") as tar:
        tar.write(header("a.jpg", size=b"\x80" + (2**33).to_bytes(11, "big")))
        tar.seek(2**33, 1)
        tar.write(file("a.json") + record("b") + END)
    found = index_shard(tmp_path / "x.tar")
    assert reasons(found) == [("size", "a")] and found.keys() == ["b"]


def test_names_that_are_not_utf8_are_read_or_faults(tmp_path):
    bad = file(b"\xff\xfe.jpg") + file(b"\xff\xfe.json")
    found = index(tmp_path, bad + END)
    assert found.keys() == ["\ufffd\ufffd"] and not found.faults
    found = index(tmp_path, bad + bad.replace(b"\xff\xfe.", b"\xfe\xff.") + END)  # the same, as far as can be told
    assert found.keys() == [] and reasons(found) == [("duplicate", "\ufffd\ufffd")]


def test_a_pax_header_of_a_hundred_thousand_entries_is_read(tmp_path):
    found = index(tmp_path, pax(b"6 a=b\n" * 170_000) + record("a") + END)
    assert found.keys() == ["a"]


FIELDS = {*range(100), *range(124, 136), *range(148, 157)}  # name, size, checksum, type


def test_every_bit_of_a_header_counts(tmp_path):
    """All but the padding of the checksum: a space for a NUL is the same number."""
    content = record("a") + record("b") + END
    before, block, silent = index(tmp_path, content), content[2 * BLOCK : 3 * BLOCK], []
    assert header_size(block) == len(WORDS)
    for bit in range(8 * BLOCK):
        flipped = bytearray(content)
        flipped[2 * BLOCK + bit // 8] ^= 1 << bit % 8
        if header_size(bytes(flipped[2 * BLOCK : 3 * BLOCK])) is None and bit % 9 and bit // 8 not in FIELDS:
            continue  # the walk makes one thing of all that is no header: a ninth will do
        (tmp_path / "x.tar").write_bytes(flipped)
        after = index_shard(tmp_path / "x.tar")
        assert after.facts["crc"] != before.facts["crc"]
        if after.faults:  # a.json is unknown, and so a.jpg and b may not be whole
            assert [f.reason for f in after.faults] == ["header", "torn", "torn"] and after.faults[0].offset == 1024
            assert lost_keys(before, after) == ["a", "b"]
        else:
            silent.append(bit // 8)
            assert after.keys() == ["a", "b"]
    # "004617\0 ": 0 -> space (a leading one), NUL <-> space
    assert set(silent) <= {148, 149, 154, 155} and len(silent) <= 4
