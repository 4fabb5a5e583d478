"""Whole or not at all; damage of any kind is noticed, and the one before is taken."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from tests.support.checkpoints import write
from visllama.checkpoint import folder as module
from visllama.checkpoint.folder import (
    SaveFailed,
    checkpoints,
    discard,
    drop_newer,
    find_damage,
    keep_newest,
    newest_whole,
    read_rest,
    remove_leftovers,
)
from visllama.errors import ConfigError


def damage(path, dice: random.Random) -> str:
    """Damage a checkpoint in one of three ways, and tell how."""
    file = path / dice.choice(sorted(p.name for p in path.iterdir()))
    content, how = bytearray(file.read_bytes()), dice.choice(("truncated", "flipped", "missing"))
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: dice.randrange(len(content))])
    else:
        place = dice.randrange(len(content))
        content[place] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
    return f"{how} {file.name}"


def test_a_hundred_damaged_checkpoints_are_noticed_and_the_one_before_is_taken(tmp_path):
    good, bad, dice, noticed = write(tmp_path, 4), write(tmp_path, 6), random.Random(0), 0
    shutil.copytree(bad, tmp_path / "kept")
    while noticed < 100:
        shutil.rmtree(bad)
        shutil.copytree(tmp_path / "kept", bad)
        how = damage(bad, dice)
        if says(bad) == says(tmp_path / "kept") and how == "flipped COMPLETE":
            continue  # a space has become another: nothing is damaged
        found, told = newest_whole(tmp_path)
        assert found is not None and found.path == good and str(bad) in told[0], how
        noticed += 1


def says(path) -> object:
    try:
        return json.loads((path / "COMPLETE").read_text())
    except (OSError, ValueError):
        return None


def test_a_flip_in_complete_never_hides_damage(tmp_path):
    """Each bit of it flipped: either it is noticed, or what it says of the files is still true."""
    path = write(tmp_path, 4)
    written = (path / "COMPLETE").read_bytes()
    (path / "rest.pt").write_bytes((path / "rest.pt").read_bytes()[:-1])
    for place in range(0, len(written), 3):
        flipped = bytearray(written)
        flipped[place] ^= 1 << (place % 8)
        (path / "COMPLETE").write_bytes(flipped)
        assert find_damage(path), place


def test_where_none_is_whole_nothing_begins_anew_in_silence(tmp_path):
    assert newest_whole(tmp_path) == (None, []), "stopped before it wrote one"
    path = write(tmp_path, 4)
    (path / "rest.pt").unlink()
    with pytest.raises(ConfigError, match=r"none of its checkpoints is whole .*rest\.pt is missing"):
        newest_whole(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '{"version": 9, "files": {}}', '{"version": 1, "files": {"../a": {"bytes": 1, "sha256": ""}}}'],
)
def test_what_is_no_checkpoint_is_told(tmp_path, content):
    path = write(tmp_path, 4)
    (path / "COMPLETE").write_text(content)
    assert find_damage(path) is not None


def test_pickled_code_is_not_run(tmp_path):
    path = write(tmp_path, 4)

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"a": Canary()}, path / "rest.pt")
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):
        read_rest(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("fails", ["save", "fsync", "dcp", "replace"])
def test_a_save_that_fails_leaves_the_last_one_and_names_the_folder(tmp_path, monkeypatch, fails):
    good = write(tmp_path, 4)
    before = {p.name: p.read_bytes() for p in good.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    place = {"save": (torch, "save"), "fsync": (os, "fsync"), "dcp": (module.dcp, "save"), "replace": (os, "replace")}[
        fails
    ]
    monkeypatch.setattr(*place, full)
    with pytest.raises(
        SaveFailed,
        match=rf"{tmp_path}/checkpoints: no checkpoint can be written there .*No space left.*last good one is {good.name}",
    ):
        write(tmp_path, 6)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in good.iterdir()} == before and find_damage(good) is None
    assert newest_whole(tmp_path)[0].path == good
    remove_leftovers(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [good.name]
    assert find_damage(write(tmp_path, 6)) is None, "once there is room"


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path):
    """On a small tmpfs, mounted in a name space of its own; the error of a real write, not of a stand-in."""
    script = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
import torch
from visllama.checkpoint.folder import SaveFailed, find_damage, name_of, write_checkpoint
run = Path({str(tmp_path)!r}) / "small"
rest = {{"optimizer_groups": []}}
for step in range(4, 40, 4):
    try:
        write_checkpoint(run / "checkpoints" / name_of(step), {{"a": torch.randn(300_000)}}, rest)
    except SaveFailed as error:
        print(error)
        break
left = sorted(p.name for p in (run / "checkpoints").iterdir())
print(left, [find_damage(run / "checkpoints" / name) for name in left])
"""
    (tmp_path / "small").mkdir()
    command = f"mount -t tmpfs -o size=4m none {tmp_path}/small && exec {sys.executable} {tmp_path}/script.py"
    (tmp_path / "script.py").write_text(script)
    ended = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=120)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()}")
    told, left = ended.stdout.strip().splitlines()
    assert f"{tmp_path}/small/checkpoints: no checkpoint can be written there" in told and "step_00000012" in told, told
    assert left == "['step_00000004', 'step_00000008', 'step_00000012'] [None, None, None]"


def test_half_a_checkpoint_is_never_one(tmp_path, monkeypatch):
    """Killed before the rename there is a hidden folder, and the next start sweeps it."""
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 4)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [".step_00000004"] and not checkpoints(tmp_path)
    remove_leftovers(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_newest_stay(tmp_path):
    for step in (4, 8, 12):
        write(tmp_path, step)
    keep_newest(tmp_path, 2)
    assert [c.step for c in checkpoints(tmp_path)] == [12, 8]
    drop_newer(tmp_path, 8)
    assert [c.step for c in checkpoints(tmp_path)] == [8]
    again = write(tmp_path, 8, steps=2)  # a step comes again after a resume: the new one takes its place
    assert find_damage(again) is None and [p.name for p in again.parent.iterdir()] == [again.name]
    discard(again)
    assert not list(again.parent.iterdir())
