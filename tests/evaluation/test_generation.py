"""Judgements that are killed and gone on with, and shared by ranks: the same files, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
import torch

from tests.scripts.judge_on_ranks import BATCH_SIZES, COUNTS
from tests.support.commands import ROOT
from tests.support.tiny import maker_of
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.generation import generation_bars, write_texts
from visllama.evaluation.prediction_log import PredictionLog
from visllama.evaluation.prompts import Prompts, prompts_of_source

ROWS = [{"image_id": number} for number in range(9)]


@pytest.fixture
def write(make_model, tmp_path):
    """Write captions of nine scenes, in batches of four, into a log."""
    model = make_model(dtype=torch.float32).eval()

    def run(prompts: Prompts | None = None, made_by: dict | None = None) -> list[str]:
        prompts = prompts or prompts_of_source(ScenesSource("test", 9, 1), "mine")
        log = PredictionLog(tmp_path / "predictions.jsonl", ROWS, "caption", made_by or {}, True)
        captioner = Captioner(maker_of(model), {"max_new_tokens": 6}, 4)
        with generation_bars() as progress:
            return [each.text for each in write_texts(model, captioner, prompts, log, progress, "mine")]

    return run


def test_it_goes_on_behind_what_is_written(write, tmp_path, capsys):
    whole = write()
    path = tmp_path / "predictions.jsonl"
    content = path.read_text()
    lines = content.splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])
    assert write() == whole and path.read_text() == content
    assert "mine: 5 of 9 were written before" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(write, monkeypatch):
    whole = write()
    monkeypatch.setattr(Captioner, "_write", lambda *_: pytest.fail("it generates"))
    assert write() == whole


def test_another_key_is_refused(write):
    write(made_by={"weights": "a"})
    with pytest.raises(ConfigError, match="another weights"):
        write(made_by={"weights": "b"})


def test_a_picture_that_cannot_be_read_is_named_and_what_was_before_it_stays(write, tmp_path):
    good = prompts_of_source(ScenesSource("test", 9, 1), "mine")
    pictures = [good.pictures(prompt) for prompt in good]
    broken = Prompts(list(good), lambda number: [b"\xff\xd8\xff nothing"] if number == 6 else pictures[number])
    with pytest.raises(ConfigError, match="record test-000006: a picture cannot be read"):
        write(broken)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 4


def killed_often(folder, num_kills: int, seed: int) -> None:
    script = ROOT / "tests" / "scripts" / "judge_and_kill.py"
    command = [sys.executable, str(script), str(folder), str(num_kills), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]

    for name in ("metrics.json", "evaluations/mine/captions.json", "evaluations/mine/predictions.jsonl"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    lives = (folder / "batches.txt").read_text().split("killed\n")
    assert len(lives) == num_kills + 1
    before = None
    for life in lives:
        starts = life.split("\n")[:-1]
        assert len(starts) == len(set(starts)) or "start 0" in starts  # the control begins at 0 too
        if before and starts:
            assert starts.count(before[-1]) <= 2  # at most the batch that was under way is generated again
        before = starts or before
    num_batches = 2 * 15
    assert sum(len(life.split("\n")) - 1 for life in lives) <= num_batches + num_kills


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    killed_often(tmp_path, 3, seed=0)


@pytest.mark.proof
def test_killed_twenty_times(tmp_path):
    killed_often(tmp_path, 20, seed=1)


@pytest.fixture(scope="module")
def captions_of(tmp_path_factory):
    @cache
    def run(num_ranks: int) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        command = [sys.executable, *launch, str(ROOT / "tests" / "scripts" / "judge_on_ranks.py"), str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=ROOT)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return run


@pytest.mark.parametrize(
    "num_ranks",
    [
        pytest.param(2, marks=pytest.mark.proof),
        pytest.param(3, marks=pytest.mark.proof),
        pytest.param(4, marks=pytest.mark.proof),
    ],
)
def test_neither_ranks_nor_batches_change_a_caption(captions_of, num_ranks):
    """1 to 17 images, in batches of 1, 4 and 16, on 1, 2, 3 and 4 ranks: the same files, to the byte."""
    alone = captions_of(1)
    assert len(alone) == len(COUNTS) * len(BATCH_SIZES)
    for name, content in alone.items():
        count = name.partition("-")[0]
        assert content == alone[f"{count}-1.json"], name
        assert len(json.loads(content)) == int(count)
    different = {row["caption"] for row in json.loads(alone["17-1.json"])}
    assert len(different) > 5
    assert captions_of(num_ranks) == alone
