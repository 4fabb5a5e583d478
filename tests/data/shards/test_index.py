"""The index of a shard against Python's tarfile, against damage, and against those who mean harm."""

from __future__ import annotations

import itertools
import json
import random
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.support.tar_headers import END, WORDS, file, header, index, pax, places, reasons, record
from tests.support.tars import members, picture, write
from visllama.data.shards.index import INDEX_VERSION, ShardIndex, index_shard, lost_keys
from visllama.data.shards.manifest import Manifest
from visllama.data.shards.reader import ShardReader
from visllama.data.shards.tar import BLOCK
from visllama.errors import REASONS, BadRecord, ConfigError

# --- What tarfile finds, we find


def test_places_are_those_of_tarfile_in_what_webdataset_writes(tmp_path):
    found = index_shard(Path(write(tmp_path / "a.tar", 50)))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert places(found) == {info.name: (info.offset_data, info.size) for info in tar}
    assert found.num_records == 50 and found.num_pairs == 100 and found.facts["kinds"] == {"captions": 50}
    assert found.is_of(tmp_path / "a.tar") and not found.faults


def test_a_record_beyond_4_gib_is_found(tmp_path):
    """In a sparse file."""
    with open(tmp_path / "x.tar", "wb") as tar:
        for i in range(17):
            tar.write(header(f"{i}.jpg", 2**28))
            tar.seek(2**28, 1)
            tar.write(file(f"{i}.json"))
        tar.write(END)
    found = index_shard(tmp_path / "x.tar")
    assert found.num_records == 17 and found.members(16)["jpg"].offset == 16 * (2**28 + 3 * 512) + 512 > 2**32
    assert not found.faults


def test_an_images_own_id_is_no_score(tmp_path):
    """It would cost the index a number a record, rounded to float32."""
    text = json.dumps({"captions": ["x"], "image_id": 391895, "good": 0.5}).encode()
    found = index(tmp_path, file("a.jpg") + file("a.json", text) + END)
    assert [name for name in found.arrays if name.startswith("score.")] == ["score.good"]


def test_numbers_of_the_metadata_are_scores(tmp_path):
    """Neither those that float32 does not hold, nor names that no file does; a name of each record is no column."""
    odd = {"good": 0.5, "huge": 10**400, "text": "1", "yes": True, "\ud800": 1, "n" * 300: 1}
    first = json.dumps({"captions": ["x"], **odd})[:-1] + ', "nan": NaN, "inf": Infinity, "over": 1e39}'
    many = json.dumps({"captions": ["x"], **{f"s{i}": i for i in range(200)}})
    content = (
        file("a.jpg") + file("a.json", first.encode()) + record("b") + file("c.jpg") + file("c.json", many.encode())
    )
    found = index(tmp_path, content + END)
    assert found.keys() == ["a", "b", "c"]
    assert [name for name in found.arrays if name.startswith("score.")][:2] == ["score.good", "score.s0"]
    assert sum(name.startswith("score.") for name in found.arrays) == 64
    np.testing.assert_array_equal(found.score("good"), np.float32([0.5, np.nan, np.nan]))
    np.testing.assert_array_equal(found.score("s5"), np.float32([np.nan, np.nan, 5]))
    assert np.isnan(found.score("none")).all()


# --- Each fault has its reason and its record's name

PAX = b"x"
LONG = "n" * 5000


FAULTS = {
    "header": (b"?" * BLOCK + record("b") + END, [("header", ""), ("torn", "b")], []),
    "its key": (record("a")[:-1024] + file("a.json", checksum=b"0000000\0") + END, [("header", "a"), ("torn", "a")], []),
    "truncated": (record("a") + header("b.jpg", 9**9), [("truncated", "b")], ["a"]),
    "truncated, and goes on": (
        record("a") + header("b.jpg", 9**9) + file("b.json") + record("c") + END,
        [("truncated", "b"), ("torn", "a")],
        ["c"],
    ),
    "zeros": (record("a") + END + record("b") + END, [("zeros", ""), ("torn", "a"), ("torn", "b")], []),
    "two tars in one": (
        record("a") + record("b") + END + record("c") + record("d") + END,
        [("zeros", ""), ("torn", "b"), ("torn", "c")],
        ["a", "d"],
    ),
    "one of zeros": (record("a") + bytes(BLOCK) + record("b") + END, [("zeros", ""), ("torn", "a"), ("torn", "b")], []),
    "no end": (record("a") + bytes(BLOCK), [("no end", "")], ["a"]),
    "trailing": (record("a") + END + b"?" * 5000, [("trailing", "")], ["a"]),
    "trailing few": (record("a") + END + b"?" * 5, [("trailing", "")], ["a"]),
    "name": (file("../../x.jpg") + record("a") + END, [("name", "")], ["a"]),
    "name at the root": (file("/etc/x.jpg") + record("a") + END, [("name", "")], ["a"]),
    "name of Windows": (file("..\\x.jpg") + record("a") + END, [("name", "")], ["a"]),
    "name that rings": (file("\x1b]0;x\x07.jpg") + record("a") + END, [("name", "")], ["a"]),
    "name that is long": (
        file("L", LONG.encode() + b".jpg\0", kind=b"L") + file("x.jpg") + record("a") + END, [("name", "")], ["a"]),
    "link": (header("a.jpg", 0, b"2") + file("a.json") + record("b") + END, [("type", "a")], ["b"]),
    "link with a size": (header("a.jpg", 9**9, b"1") + record("b") + END, [("type", "a")], ["b"]),
    "size": (header("a.jpg", 2**33) + record("b") + END, [("truncated", "a"), ("torn", "b")], []),
    "negative size": (header("a.jpg", size=b"-0000000010") + record("b") + record("c") + END,
        [("header", "a"), ("torn", "b")], ["c"]),
    "negative size in base 256": (header("a.jpg", size=b"\xff" * 12) + record("b") + record("c") + END,
        [("header", "a"), ("torn", "b")], ["c"]),
    "size with an underscore": (header("a.jpg", size=b"0_000000010") + record("b") + record("c") + END,
        [("header", "a"), ("torn", "b")], ["c"]),
    "suffix": (file("a.jpg") + file("a.cls") + file("a.json") + file("b") + file("c/.jpg") + END,
        [("suffix", "")] * 3, ["a"]),
    "duplicate": (file("a.jpg") + file("a.JPG") + file("a.json") + END, [("duplicate", "a")], []),
    "split key": (record("a") + record("b") + file("a.txt") + END, [("split key", "a")], ["b"]),
    "split key, and whole": (record("a") + record("b") + record("a") + END, [("split key", "a")], ["a", "b"]),
    "no image": (file("a.json") + END, [("no image", "a")], []),
    "text": (file("a.jpg") + END, [("text", "a")], []),
    "text that is long": (file("a.jpg") + file("a.txt", b"x" * (2**22 + 1)) + END, [("text", "a")], []),
    "text that is deep": (file("a.jpg") + file("a.json", b"[" * 10**6) + END, [("text", "a")], []),
    "text with half an emoji": (
        file("a.jpg") + file("a.json", b'{"captions": ["\\uD83D"]}') + END, [("text", "a")], []),
    "text behind the text": (file("a.jpg") + file("a.json", WORDS + b" \n{") + END, [("text", "a")], []),
    "space that is none in JSON": (
        file("a.jpg") + file("a.json", WORDS + "\xa0".encode()) + END, [("text", "a")], []),
    "number of many digits": (
        file("a.jpg") + file("a.json", b'{"captions": ["x"], "n": ' + b"9" * 5000 + b"}") + END, [("text", "a")], []),
    "pax": (record("a") + pax(b"nonsense") + record("b") + record("c") + END,
        [("header", "b"), ("torn", "a"), ("torn", "b")], ["c"]),
    "pax without a size": (pax(b"13 size=x123\n") + record("b") + END, [("header", "b"), ("torn", "b")], []),
    "pax with a time that is cut": (pax(b"27 mtime=1795636210.52465") + record("b") + END,
        [("header", "b"), ("torn", "b")], []),
    "pax with a time of another length": (pax(b"26 mtime=1795636210.524653\n") + record("b") + END,
        [("header", "b"), ("torn", "b")], []),
    "pax with a long size": (pax(b"5014 size=%s\n" % (b"9" * 5003)) + record("b") + END,
        [("header", "b"), ("torn", "b")], []),
    "pax that is large": (file("x", bytes(2**21), kind=b"x") + record("b") + END,
        [("header", "b"), ("torn", "b")], []),
    "pax with a huge size": (pax(b"28 size=9223372036854775807\n") + record("b") + record("c") + END,
        [("truncated", "b")], ["c"]),
    "sparse": (pax(b"22 GNU.sparse.major=1\n") + record("b") + END, [("type", "b")], []),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_has_its_reason_and_its_record(tmp_path, case):
    content, faults, keys = FAULTS[case]
    found = index(tmp_path, content)
    assert reasons(found) == faults and found.keys() == keys


def test_faults_are_all_counted_and_a_thousand_listed(tmp_path):
    found = index(tmp_path, b"".join(header(f"{i}.exe") for i in range(1500)) + END)
    assert found.facts["faults"] == {"suffix": 1500} and len(found.faults) == 1000


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=700),
            st.builds(header, st.text(max_size=20), st.integers(0, 2**30), st.binary(min_size=1, max_size=1)),
            st.builds(file, st.sampled_from(["a.jpg", "a.json", "b.txt"]), st.binary(max_size=90)),
            st.builds(lambda body, kind: file("x", body, kind=kind), st.binary(max_size=90), st.sampled_from([b"x", b"L", b"g", b"K"])),
            st.builds(lambda size: header("a.jpg", size=size), st.binary(min_size=12, max_size=12)),
            st.just(bytes(BLOCK)),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_no_content_of_a_file_is_an_exception(tmp_path, parts):
    index(tmp_path, b"".join(parts))


# --- The sidecar


def test_a_damaged_or_foreign_sidecar_is_said_to_be_one(tmp_path):
    index(tmp_path, record("a") + record("b") + END)
    path = tmp_path / "x.tar.idx"
    good, rng = path.read_bytes(), random.Random(0)
    for content in (b"", b"no index", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="made anew"):
            ShardIndex.load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ConfigError, match="made anew"):
        ShardIndex.load(path)
    with pytest.raises(ConfigError, match="made anew"):
        ShardIndex.load(tmp_path / "none")
    refused = 0
    for _ in range(500):
        content = bytearray(good)
        for _ in range(rng.choice([1, 1, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)
        try:
            found = ShardIndex.load(path)
        except ConfigError:
            refused += 1
        else:  # white space of the file's own header
            assert found.keys() == ["a", "b"] and found.members(1)["json"] == (7 * BLOCK, 23)
    assert refused >= 490


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", 0), ("offset", 2**64 - 512), ("offset", 2**63), ("offset", 10_000), ("size", 2**32 - 1), ("suffix", 9),
        ("first", 2**32 - 1), ("first", 0), ("key_end", 2**63), ("key_end", 0),
    ],
)  # fmt: skip
def test_a_sidecar_that_leads_out_of_the_tar_is_refused(tmp_path, name, value):
    """Though its checksum is right: somebody wrote it."""
    made = index(tmp_path, record("a") + record("b") + END)
    made.arrays[name] = made.arrays[name].copy()
    made.arrays[name][-1] = value
    made.save(tmp_path / "x.tar.idx")
    with pytest.raises(ConfigError, match="made anew"):
        ShardIndex.load(tmp_path / "x.tar.idx")


@pytest.mark.parametrize(
    "facts",
    [
        {"bytes": "9"}, {"bytes": None}, {"bytes": 2}, {"suffixes": ["exe"]}, {"suffixes": None}, {"suffixes": []}, {"kinds": []},
        {"kinds": {"captions": "x"}}, {"listed": [1]}, {"listed": [[1, 2, 3, 4]]}, {"index_version": INDEX_VERSION + 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_sidecar_of_other_facts_is_refused(tmp_path, facts):
    made = index(tmp_path, record("a") + END)
    made.facts.update(facts)
    made.save(tmp_path / "x.tar.idx")
    with pytest.raises(ConfigError, match="made anew"):
        ShardIndex.load(tmp_path / "x.tar.idx")


def test_a_sidecar_without_its_checksum_is_refused(tmp_path):
    index(tmp_path, record("a") + END)
    arrays = load_file(tmp_path / "x.tar.idx")
    save_file(arrays, tmp_path / "x.tar.idx", {"visllama": "{}"})
    with pytest.raises(ConfigError, match="made anew"):
        ShardIndex.load(tmp_path / "x.tar.idx")


def test_lost_keys_are_those_of_the_earlier_index_alone(tmp_path):
    before = index(tmp_path, record("a") + record("b") + record("c") + END)
    after = index(tmp_path, record("c") + record("d") + END)
    assert lost_keys(before, after) == ["a", "b"] and lost_keys(before, before) == []


# --- Damage


@dataclass
class Truth:
    content: bytes
    index: ShardIndex
    headers: list[int]
    """Where they begin, the end of the last member at the end."""

    def contents(self, found: ShardIndex | None = None, content: bytes | None = None) -> dict[str, dict[str, bytes]]:
        found, content = found or self.index, content or self.content
        return {
            key: {name: content[m.offset : m.offset + m.size] for name, m in found.members(i).items()}
            for i, key in enumerate(found.keys())
        }


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    """32 records: one picture or two, JSON, text beside it; no two pictures have the same size."""
    path, files = tmp_path_factory.mktemp("truth"), []
    for i in range(32):
        body = picture(i) + bytes(range(i)) * 30
        pictures = [(f"{i:04d}.jpg", body)] if i % 3 else [(f"{i:04d}.{k}.jpg", body + b"x" * k) for k in range(2)]
        text = json.dumps({"captions": [f"number {i}"], "pad": "x" * (7 * i)}).encode()
        files += [*pictures, (f"{i:04d}.json", text), *[(f"{i:04d}.txt", b"a caption")] * (i % 2)]
    content = Path(members(path / "x.tar", *files)).read_bytes()
    with tarfile.open(path / "x.tar") as tar:
        headers = [info.offset for info in tar]
        end = tar.offset - BLOCK
    return Truth(content, index(path, content), [*headers, end])


IN_PLACE = ("flip 1", "flip 64", "header", "zeros")
MOVED = ("truncate", "duplicate", "remove", "swap", "shuffle")


def mutate(truth: Truth, kind: str, rng: random.Random) -> bytes:
    content, headers = bytearray(truth.content), truth.headers
    parts = [bytes(content[a:b]) for a, b in itertools.pairwise(headers)]
    one, two = sorted(rng.sample(range(len(parts)), 2))
    if kind in ("flip 1", "flip 64"):
        for _ in range(int(kind[5:])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "header":
        for _ in range(rng.randint(1, 8)):
            content[headers[one] + rng.randrange(BLOCK)] = rng.randrange(256)
    elif kind == "zeros":
        at = rng.randrange(len(content) - 4096)
        content[at : at + 4096] = bytes(4096)
    elif kind == "truncate":
        del content[rng.randrange(len(content)) :]
    elif kind == "duplicate":
        at, size = (BLOCK * rng.randrange(n) for n in (headers[-1] // BLOCK, 12))
        content[at:at] = content[at : at + size + BLOCK]
    else:
        if kind == "remove":
            del parts[one]
        elif kind == "swap":
            parts[one], parts[two] = parts[two], parts[one]
        else:
            rng.shuffle(parts)
        content[: headers[-1]] = b"".join(parts)
    return bytes(content)


def check_reader(path: Path, truth: Truth, mutated: bytes, in_place: bool) -> Counter:
    """Read all records by the undamaged index: each is delivered or skipped by its reason."""
    truth.index.save(path / "x.tar.idx")
    reader = ShardReader(Manifest.of(str(path), ["x.tar"], [truth.index.row]))
    seen: Counter = Counter()
    for i, (key, original) in enumerate(truth.contents().items()):
        try:
            found, contents = reader.read(0, i)
        except BadRecord as error:
            assert key in str(error)
            seen[error.reason] += 1
            continue
        assert found == key and contents.keys() == original.keys()
        for name, m in truth.index.members(i).items():
            assert contents[name] == mutated[m.offset : m.offset + m.size] and len(contents[name]) == m.size
        # Where members moved, one of the same size may stand in its place: the reader asks for no name.
        seen["whole" if contents == original else "touched" if in_place else "another"] += 1
    reader._open.popitem()[1].file.close()
    return seen


def check_index(truth: Truth, after: ShardIndex, mutated: bytes, kind: str) -> None:
    """Index it anew: what is lost or changed is told, and no record is patched up from what is left of it."""
    before, now = truth.contents(), truth.contents(after, mutated)
    lost, told = set(lost_keys(truth.index, after)), {fault.key for fault in after.faults}
    assert lost == before.keys() - now.keys()
    if mutated != truth.content and kind != "flip 1":
        assert after.facts["crc"] != truth.index.facts["crc"] or after.facts["faults"] or _only_pictures(truth, mutated)
    if lost and kind != "remove":
        assert after.facts["faults"]
    if kind in ("swap", "shuffle"):
        assert lost <= told
    if kind == "truncate":  # those before the cut are whole, and those behind it gone
        assert [*now] == [*before][: len(now)] and len(lost - told) + len(told & lost) == 32 - len(now)
    for key in now.keys() & before.keys():
        if kind == "remove" and len(now[key]) < len(before[key]):
            continue  # a whole tar, that never held it
        assert now[key].keys() == before[key].keys(), (kind, key)
        assert kind in (*IN_PLACE, "duplicate") or now[key] == before[key]
    if kind in IN_PLACE:
        touched = np.flatnonzero(np.frombuffer(mutated, np.uint8) != np.frombuffer(truth.content, np.uint8))
        near = _near(truth, touched)
        assert lost <= near, "no record is lost but beside the damage"


def _only_pictures(truth: Truth, mutated: bytes) -> bool:
    """Return whether all the headers and texts are as they were."""
    places = [(m, name) for i in range(32) for name, m in truth.index.members(i).items()]
    spans = [(m.offset - BLOCK, m.offset + (0 if name.endswith("jpg") else m.size)) for m, name in places]
    return len(mutated) == len(truth.content) and all(mutated[a:b] == truth.content[a:b] for a, b in spans)


def _near(truth: Truth, touched: np.ndarray) -> set[str]:
    """Name the records that bytes are of, and those on both sides of their members."""
    members = [
        (m.offset - BLOCK, key) for i, key in enumerate(truth.index.keys()) for m in truth.index.members(i).values()
    ]
    starts, keys = zip(*sorted(members), strict=True)
    found = np.unique(np.searchsorted(starts, touched, side="right") - 1)
    return {key for at in found.tolist() for key in keys[max(0, at - 1) : at + 2]}


def test_a_thousand_damaged_copies(tmp_path, truth):
    """No crash, no hang, and nothing that is not told: delivered + skipped is what the index says, for each."""
    seen, copies = Counter(), 1008
    for number in range(copies):
        rng = random.Random(number)
        kind = (IN_PLACE + MOVED)[number % 9]
        mutated = mutate(truth, kind, rng)
        (tmp_path / "x.tar").write_bytes(mutated)
        read = check_reader(tmp_path, truth, mutated, kind in IN_PLACE)
        assert read.total() == 32 and read.keys() <= {"whole", "touched", "another", *REASONS}, (number, kind)
        after = index_shard(tmp_path / "x.tar")
        check_index(truth, after, mutated, kind)
        seen += Counter({f"{kind}: {name}": count for name, count in read.items()})
    for kind in IN_PLACE + MOVED:
        assert sum(count for name, count in seen.items() if name.startswith(f"{kind}: ")) == 32 * copies // 9
    print(dict(seen))
