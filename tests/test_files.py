import os

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tests.support.small_disk import run_on_small_disk
from visllama.files import WriteFailed, open_regular, replacing, write_whole


def test_others_may_read_what_safetensors_writes(tmp_path):
    """Its `save_file` makes files that only their owner may read."""
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"a": np.zeros(3)}, temporary)
        write_whole(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"a.safetensors": "0o644", "a.json": "0o644"}


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_in_mid_write_leaves_the_file_as_it_was(tmp_path, raised):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(raised), replacing(path) as temporary:
        temporary.write_text("half")
        raise raised
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_text() == "before"


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(tmp_path / "a"):
        open(tmp_path / "nowhere")  # noqa: SIM115
    with pytest.raises(WriteFailed, match=r"no/a: cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "no" / "a", "")


def test_a_full_disk_leaves_each_file_whole_or_not_there(tmp_path):
    script = """
import sys
from pathlib import Path
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from visllama.files import WriteFailed, open_regular, replacing, write_whole
disk = Path(sys.argv[1])
write_whole(disk / "a.json", "small")
def tensors():
    with replacing(disk / "a.safetensors") as temporary:
        save_file({"a": np.zeros(2**20)}, temporary)
for write in (lambda: write_whole(disk / "a.json", "large" * 2**20), tensors):
    try:
        write()
    except WriteFailed as error:
        print(error)
print(sorted(path.name for path in disk.iterdir()), (disk / "a.json").read_text())
"""
    ended = run_on_small_disk(script, tmp_path / "disk", "1m", str(tmp_path / "disk"))
    assert ended.stdout.splitlines() == [
        f"{tmp_path}/disk/a.json: cannot be written (No space left on device)",
        f"{tmp_path}/disk/a.safetensors: cannot be written (No space left on device)",
        "['a.json'] small",
    ], ended.stderr


def test_a_folder_in_the_place_of_a_file_leaves_nothing_open(tmp_path, monkeypatch):
    opened = []
    open_descriptor = os.open
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(open_descriptor(*arguments)) or opened[-1])
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_an_error_of_safetensors_that_is_not_of_the_disk_is_raised_as_it_is(tmp_path):
    """A mistake in the tensors is no failed write: to free the disk would not mend it."""
    with pytest.raises(SafetensorError, match="too small"), replacing(tmp_path / "a"):
        raise SafetensorError("Error while deserializing header: header too small")
    assert list(tmp_path.iterdir()) == []
