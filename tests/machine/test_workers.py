"""A worker ends with the process that has started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PROGRAM = """
import time
from visllama.machine.workers import executor

if __name__ == "__main__":
    with executor(2) as pool:
        list(pool.map(time.sleep, [600, 600]))
"""


def marked(mark: str) -> list[int]:
    """Return the processes that bear a mark in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={mark}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def wait_for(mark: str, is_right) -> None:
    until = time.monotonic() + 60
    while not is_right(len(marked(mark))):
        assert time.monotonic() < until, marked(mark)
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path):
    """Start a command all of whose processes bear the mark of this test, and end what is left of them."""
    mark = str(tmp_path)

    def run(*command: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MARK": mark}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)

    yield run
    for process in marked(mark):
        os.kill(process, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(start, tmp_path, number):
    (tmp_path / "program.py").write_text(PROGRAM)
    parent = start(sys.executable, "program.py")
    wait_for(str(tmp_path), lambda count: count >= 3)
    time.sleep(1)  # until the workers are at work
    parent.send_signal(number)
    parent.wait()
    wait_for(str(tmp_path), lambda count: count == 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_training_of_the_scenes_pair_leaves_nothing_at_work(start, tmp_path):
    parent = start(sys.executable, "-m", "visllama", "prepare", "source=scenes", "out=pair")
    wait_for(str(tmp_path), lambda count: count >= 5)  # this one, a manager, two that train, a tracker
    time.sleep(5)
    parent.terminate()
    parent.wait()
    wait_for(str(tmp_path), lambda count: count == 0)
