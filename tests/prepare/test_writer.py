"""Shards: the same bytes from any number of processes and after any interruption, and never a part of a split."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace

import pytest

from tests.prepare.made import hashes, plan, put, read, skipped
from visllama.errors import ConfigError
from visllama.prepare import writer
from visllama.prepare.writer import write_split


def test_shards_are_full_in_order_and_deterministic(tmp_path):
    made = plan(tmp_path)
    done = write_split(made, tmp_path / "a" / "train", {})
    write_split(made, tmp_path / "b" / "train", {})
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") and len(hashes(tmp_path / "a")) == done["shards"] > 3
    assert list(read(tmp_path / "a" / "train")) == [f"{n:08d}" for n in range(40)]
    with tarfile.open(tmp_path / "a" / "train" / "00000.tar") as tar:
        member = tar.next()
        assert (member.mtime, member.uid, member.uname, member.name) == (0, 0, "", "00000000.jpg")
    assert all(size <= 20_000 for size in made.shard_bytes) and (done["records"], done["images"]) == (40, 40)
    assert done["bytes"] == sum(tar.stat().st_size for tar in (tmp_path / "a").rglob("*.tar"))


def test_two_processes_write_what_one_does(tmp_path, monkeypatch):
    made = plan(tmp_path, bad=(7,))
    write_split(made, tmp_path / "a" / "train", {}, 0.1, num_workers=1)
    monkeypatch.setattr(writer, "_SERIAL_BYTES", 0)
    write_split(made, tmp_path / "b" / "train", {}, 0.1, num_workers=2)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert skipped(tmp_path / "a" / "train") == skipped(tmp_path / "b" / "train") != []


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    made = plan(tmp_path, 150, 6000, bad=(3,))
    write_split(made, tmp_path / "whole" / "train", {}, 0.1)
    started = time.perf_counter()
    write_split(made, tmp_path / "timed" / "train", {}, 0.1)
    seconds, killed = time.perf_counter() - started, 0
    folder, chance = tmp_path / "torn" / "train", random.Random(1)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            write_split(made, folder, {}, 0.1)
            os._exit(0)
        time.sleep(seconds * chance.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert not folder.exists() or hashes(folder) == hashes(tmp_path / "whole" / "train"), "all of it, or nothing"
    write_split(made, folder, {}, 0.1)
    assert killed and hashes(tmp_path / "torn") == hashes(tmp_path / "whole")
    assert skipped(folder) == skipped(tmp_path / "whole" / "train")
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "whole" / "train")), "nothing is left lying about"
    assert not (tmp_path / "torn" / "train.part").exists()


PROGRAM = """
import sys
from pathlib import Path
from tests.prepare.made import plan
from visllama.prepare import writer
from visllama.prepare.writer import write_split
writer._SERIAL_BYTES = 0
if __name__ == "__main__":
    write_split(plan(Path(sys.argv[1]), 3000, 20_000), Path(sys.argv[2]) / "train", {}, num_workers=2)
"""


@pytest.mark.slow
def test_processes_killed_at_any_moment_go_on_and_leave_no_orphans(tmp_path):
    program = put(tmp_path / "program.py", PROGRAM)
    command = [sys.executable, str(program), str(tmp_path)]
    options = {"env": os.environ | {"PYTHONPATH": "."}}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=300, **options)
    part, chance = tmp_path / "torn" / "train.part", random.Random(2)
    for _ in range(5):
        process = subprocess.Popen([*command, str(tmp_path / "torn")], **options)
        before = len(list(part.glob("*.tar")))
        while process.poll() is None and len(list(part.glob("*.tar"))) <= before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
    mine = str(tmp_path).encode()
    deadline = time.monotonic() + 10
    while any(mine in _command(pid) or _parent_was(pid, process.pid) for pid in _processes()):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)
    subprocess.run([*command, str(tmp_path / "torn")], check=True, timeout=300, **options)
    assert hashes(tmp_path / "torn") == hashes(tmp_path / "whole")


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _parent_was(pid: str, parent: int) -> bool:
    return b"spawn_main" in _command(pid) and f"parent_pid={parent}".encode() in _command(pid)


def test_what_is_there_already_is_not_written_again(tmp_path):
    made, folder = plan(tmp_path), tmp_path / "data" / "train"
    done = write_split(made, folder, {})
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = write_split(made, folder, {})
    assert again | {"seconds": 0} == done | {"seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_plan_in_the_folder_is_refused_with_what_changed(tmp_path):
    folder = tmp_path / "data" / "train"
    write_split(plan(tmp_path), folder, {"shard_size_mb": 0.02})
    with pytest.raises(ConfigError, match=r"holds shards made with shard_size_mb=0.02, now 0.01: give another name="):
        write_split(plan(tmp_path, shard_bytes=10_000), folder, {"shard_size_mb": 0.01})
    with pytest.raises(ConfigError, match="other raw files or records"):
        write_split(plan(tmp_path, 39), folder, {"shard_size_mb": 0.02})
    assert len(read(folder)) == 40


def test_another_plan_that_was_begun_is_refused(tmp_path):
    folder = tmp_path / "data" / "train"
    with pytest.raises(ConfigError, match="max_bad_fraction"):
        write_split(plan(tmp_path, bad=(39,)), folder, {})
    with pytest.raises(ConfigError, match=r"train.part: a beginning made with other raw files"):
        write_split(plan(tmp_path, 20), folder, {})


@pytest.mark.parametrize("name", ["00000.tar", "notes.txt"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name):
    foreign = put(tmp_path / "data" / "train" / name, "mine")
    with pytest.raises(ConfigError, match="something else"):
        write_split(plan(tmp_path), tmp_path / "data" / "train", {})
    assert foreign.read_text() == "mine" and not (tmp_path / "data" / "train.part").exists()


def test_shards_that_were_changed_since_are_noticed(tmp_path):
    folder = tmp_path / "data" / "train"
    write_split(plan(tmp_path), folder, {})
    (folder / "00001.tar").unlink()
    with pytest.raises(ConfigError, match="delete the folder"):
        write_split(plan(tmp_path), folder, {})


def test_too_many_bad_images_leave_no_split_and_allowing_them_goes_on(tmp_path):
    made, folder = plan(tmp_path, bad=(0, 39)), tmp_path / "data" / "train"
    with pytest.raises(
        ConfigError, match=r"2 of 40 records \(5.0%\) are bad.*image 2(.|\n)*row 0: (.|\n)*max_bad_fraction=0.05"
    ):
        write_split(made, folder, {})
    assert not folder.exists()
    done = write_split(made, folder, {}, 0.05)
    assert done["skipped"] == {"image": 2} and done["records"] == len(read(folder)) == 38
    assert [entry["where"] for entry in skipped(folder)] == ["row 0", "row 39"]


def test_a_shard_without_a_good_record_is_left_out(tmp_path):
    done = write_split(plan(tmp_path, 3, 1000, bad=(1,)), tmp_path / "data" / "train", {}, 0.5)
    assert done["shards"] == 2 and sorted(hashes(tmp_path / "data")) == ["train/00000.tar", "train/00002.tar"]
    assert list(read(tmp_path / "data" / "train")) == ["00000000", "00000002"]


def test_one_process_at_a_time(tmp_path):
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data" / ".train.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            write_split(plan(tmp_path), tmp_path / "data" / "train", {})


def test_a_full_disk_is_told_before_and_while_writing(tmp_path, monkeypatch):
    made = plan(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(writer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(ConfigError, match="GB are free"):
            write_split(made, tmp_path / "data" / "train", {})
    with monkeypatch.context() as patched:
        patched.setattr(writer, "make_shard", _full)
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left"):
            write_split(made, tmp_path / "data" / "train", {})
    assert write_split(made, tmp_path / "data" / "train", {})["records"] == 40


def _full(job):
    raise OSError(28, "No space left on device")
