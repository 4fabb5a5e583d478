"""Shards on another machine, a bad one: training data arrive complete and in order, or the run stops and says why."""

from __future__ import annotations

import pytest

from tests.support import tiny
from tests.support.fault_server import Cut, FaultServer, Redirect, Reset, Stall, Status
from tests.support.tars import write
from visllama.data.scenes.source import ScenesSource
from visllama.data.shards import cache as cache_module
from visllama.data.shards.cache import ShardCache
from visllama.data.shards.manifest import local_manifest
from visllama.data.shards.source import ShardSource
from visllama.errors import ConfigError
from visllama.model.weights import build_model


@pytest.fixture(scope="module")
def model():
    return build_model(tiny.tiny_parts(), ("connector", "markers"))


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        (tmp_path / "far" / "cc3m").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "far" / "cc3m" / f"{i:05d}.tar", 6 + i, 20 * i)
    local_manifest(str(tmp_path / "far" / "cc3m"), tmp_path)
    return tmp_path / "far"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Attempts follow each other at once; a stalled server is given up after a second."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(ShardCache.__init__, "__defaults__", (None, 5, 1.0, 0.01))
    monkeypatch.setattr(cache_module, "_LONGEST_WAIT_S", 0.05)


def steps(model, source, num_workers=0, num_steps=12):
    data = tiny.data_of(model, {"cc3m": source}, ScenesSource("val", 1, 1), 8, num_steps, num_workers=num_workers)
    return [(step["keys"], step["num_targets"], step["faults"]) for step in data.train_dataloader()]


FAULTS = {
    "503": [Status(503), Status(503)],
    "cut": [Cut(1000), Cut(5000), Cut(9000)],
    "stall": [Stall(2000, 1.5)],
    "reset": [Reset(3000)],
    "all": [Status(500), Cut(700), Stall(100, 1.5), Reset(1)],
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_complete_and_in_order(model, folder, tmp_path, faults, num_workers):
    expected = steps(model, ShardSource("train", str(folder / "cc3m"), cache=str(tmp_path / "unused")))
    with FaultServer(folder) as server:
        for i in range(3):
            for fault in faults:
                server.fail(f"/cc3m/{i:05d}.tar", fault)
        server.fail("/cc3m/manifest.json", faults[0])
        source = ShardSource("train", server.url("/cc3m"), cache=str(tmp_path / "cache"))
        assert source.is_remote and steps(model, source, num_workers) == expected
    assert not (tmp_path / "unused").exists(), "what is local needs no cache"


def test_redirected_to_another_place(model, folder, tmp_path):
    expected = steps(model, ShardSource("train", str(folder / "cc3m")))
    with FaultServer(folder) as server:
        for i in range(3):
            (folder / f"moved{i}.tar").write_bytes((folder / "cc3m" / f"{i:05d}.tar").read_bytes())
            server.fail(f"/cc3m/{i:05d}.tar", Redirect(f"/moved{i}.tar"), times=9)
        assert steps(model, ShardSource("train", server.url("/cc3m"), cache=str(tmp_path / "cache"))) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "says"), [(Status(404), "404"), (Status(503), "503"), (Redirect("file:///etc/passwd"), "not allowed")]
)
def test_else_the_run_stops_and_says_why(model, folder, tmp_path, fault, says, num_workers):
    with FaultServer(folder) as server:
        server.fail("/cc3m/00002.tar", fault, times=99)
        source = ShardSource("train", server.url("/cc3m"), cache=str(tmp_path / "cache"))
        with pytest.raises(ConfigError, match=f"00002.tar: .*{says}") as caught:
            steps(model, source, num_workers)
    assert "Traceback" not in str(caught.value), "not even out of a worker"


def test_a_folder_without_a_manifest_says_what_to_do(folder, tmp_path):
    with (
        FaultServer(folder) as server,
        pytest.raises(ConfigError, match=r"manifest\.json: .*404.*prepare source=shards"),
    ):
        ShardSource("train", server.url("/nothing"), cache=str(tmp_path / "cache"))


def test_two_sources_with_equal_file_names_never_mix(model, folder, tmp_path):
    (folder / "coyo").mkdir()
    for i in range(3):
        write(folder / "coyo" / f"{i:05d}.tar", 6 + i, 1000 + 20 * i)
    local_manifest(str(folder / "coyo"), tmp_path)
    with FaultServer(folder) as server:
        sources = {
            n: ShardSource("train", server.url(f"/{n}"), cache=str(tmp_path / "cache")) for n in ("cc3m", "coyo")
        }
        data = tiny.data_of(model, sources, ScenesSource("val", 1, 1), 8, 20, num_workers=2)
        seen = {key for step in data.train_dataloader() for key in step["keys"]}
    numbers = {name: set() for name in sources}
    for key in seen:
        name, _, record = key.partition("#")[0].partition("/")
        numbers[name].add(int(record.rpartition("/")[2]))
    assert min(numbers["coyo"]) >= 1000 and max(numbers["cc3m"]) < 1000


def test_no_index_is_fetched_to_start_or_to_look_ahead(model, folder, tmp_path):
    """Which shards come is known by the manifest alone: indexes of 70,000 shards would take hours."""
    with FaultServer(folder) as server:
        source = ShardSource("train", server.url("/cc3m"), cache=str(tmp_path / "cache"), val_fraction=None)
        loader = tiny.data_of(model, {"cc3m": source}, ScenesSource("val", 1, 1), 1, 40).train_dataloader()
        loader._reading = True
        coming = [address.rpartition("/")[2] for address, _ in loader._coming_shards("cc3m")]
        assert sorted(coming) == ["00000.tar", "00001.tar", "00002.tar"]
        assert server.requests == {"/cc3m/manifest.json": 1}
        assert source.find_item(1).index == 1 and server.requests["/cc3m/00000.tar.idx"] == 1


def test_what_comes_next_is_fetched_ahead(model, folder, tmp_path):
    with FaultServer(folder) as server:
        source = ShardSource("train", server.url("/cc3m"), cache=str(tmp_path / "cache"))
        data = tiny.data_of(model, {"cc3m": source}, ScenesSource("val", 1, 1), 1, 40)
        loader = iter(data.train_dataloader())
        next(loader)
        for _ in range(200):
            if sum(server.requests[f"/cc3m/{i:05d}.tar"] for i in range(3)) == 3:
                break
            cache_module.time.sleep(0.05)
        assert [server.requests[f"/cc3m/{i:05d}.tar"] for i in range(3)] == [1] * 3
        loader.close()
