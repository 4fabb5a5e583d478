"""The verb `benchmark`: its figures, its table, and what it refuses. No time is held to anything."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image, JpegImagePlugin

from visllama.benchmark import data, figures, verb
from visllama.benchmark.figures import Figure, faster, table, time_in_turns
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


def test_sizes_are_those_that_the_check_knows():
    from visllama.config.choices import BENCHMARK_SIZES

    assert tuple(data.SIZES) == BENCHMARK_SIZES
    assert all(size.images % data.BATCH_SIZE == 0 for size in data.SIZES.values())


def test_a_photo_is_what_it_is_said_to_be():
    photo = data.make_photo(3)
    opened = Image.open(io.BytesIO(photo))
    assert opened.size == (640, 480) and JpegImagePlugin.get_sampling(opened) == 2
    assert 50_000 < len(photo) < 150_000
    assert photo == data.make_photo(3) != data.make_photo(4)


def test_jobs_take_turns_and_the_first_round_does_not_count():
    ran = []
    jobs = {name: lambda name=name: ran.append(name) or 2 for name in "ab"}
    taken = time_in_turns(jobs, 2, lambda: None)
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}
    assert sorted(ran) == list("aaabbb") and ran[2] != ran[4], "who is first changes"


def test_a_ratio_compares_each_round_in_itself():
    assert faster([1, 10, 100], [2, 20, 500]) == 2


def test_a_figure_that_misses_is_told_and_is_no_error(capsys):
    met, missed = Figure("a", "x", "x", 3.0, "x", least=2), Figure("a", "y", "y", 120.0, "MB", most=100)
    assert met.to_dict() == {"value": 3.0, "unit": "x", "asked": ">= 2", "ok": True}
    assert missed.to_dict() == {"value": 120.0, "unit": "MB", "asked": "< 100", "ok": False}
    assert Figure("a", "z", "z", 1.0, "s").to_dict() == {"value": 1.0, "unit": "s"}
    figures_shown = table("t", [met, missed])
    assert figures_shown.row_count == 3  # with the section's head
    verb.say(figures_shown)
    assert "missed" in capsys.readouterr().out


def test_numbers_are_shown_with_what_they_are_good_for():
    assert [figures._plain(value) for value in (12345.6, 76.14, 2.418, 0.5712)] == ["12,346", "76.1", "2.42", "0.571"]


@pytest.mark.slow
def test_the_program_ends_well_whatever_it_finds(tmp_path):
    ended = program("what=data", "name=here", cwd=tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("outputs/here/*/benchmark.json")) and "asked" in ended.stdout
