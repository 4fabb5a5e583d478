"""The verb `benchmark`: its figures, its table, and what it refuses. No time is held to anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from visllama.benchmark import data, verb
from visllama.images import decode as images

TINY = data.Size(images=32, loading_rounds=1, records=20, index_rounds=1, shards=500, starts=1)
LOADING = {"ours", "webdataset", "bare", "over_webdataset", "over_bare"}
PILLOW = {"ours_pillow", "bare_pillow", "pillow_over_webdataset", "pillow_over_bare"}
INDEX = {"ours", "tarfile", "tarfile_text", "over_tarfile", "over_tarfile_text", "sidecar"}
ORDER = {"start", "jump", "jump_of_8", "after", "memory"}
ASKED = {"loading_over_webdataset", "loading_over_bare", "index_over_tarfile", "index_over_tarfile_text"} | {
    f"order_{name}" for name in ORDER
}


def program(*typed: str, cwd, timeout: float = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", "benchmark", *typed]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)


@pytest.mark.parametrize("decoder", [images.simplejpeg, None], ids=["as_installed", "pillow"])
def test_every_figure_is_measured_written_and_shown(configure, monkeypatch, tmp_path, capsys, decoder):
    monkeypatch.setitem(data.SIZES, "small", TINY)
    monkeypatch.setattr(images, "simplejpeg", decoder)
    result = verb.benchmark(configure("benchmark"))
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert (written["what"], written["size"]) == ("data", "small")
    assert written["provenance"]["measured"] == TINY._asdict()
    found = written["figures"]
    expected = {f"loading_{name}" for name in LOADING | (PILLOW if decoder else set())}
    assert set(found) == expected | {f"index_{name}" for name in INDEX} | {f"order_{name}" for name in ORDER}
    assert all(figure["value"] >= 0 and figure["unit"] for figure in found.values())
    assert {name for name, figure in found.items() if "asked" in figure} == ASKED
    assert ("simplejpeg" in written["provenance"]["packages"]) == bool(decoder)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if line[:1] in "│┃├")
    assert f"Wrote {tmp_path}: benchmark.json" in shown


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("what=stepp", "what=stepp: this version measures what=data"),
        ("size=ful", "size=ful: did you mean full? choose small or full"),
        ("+sizes=small", "sizes: there is no such key"),
        ("seed=-1", "seed=-1: must be 0 or more"),
        ("what=null", "what"),
    ],
)
def test_what_is_not_measured_is_refused_and_leaves_nothing(tmp_path, typed, says):
    ended = program(typed, cwd=tmp_path)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_program_ends_well_whatever_it_finds(tmp_path):
    ended = program("what=data", "name=here", cwd=tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("outputs/here/*/benchmark.json")) and "asked" in ended.stdout
