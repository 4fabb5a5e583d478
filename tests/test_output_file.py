"""What a run prints where its output is a file, as under SLURM: few lines, and nothing that only a terminal reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

MOST_LINES = 200
SHORT = ["trainer=cpu", "trainer.max_steps=30", "trainer.log_every_steps=1", "stage.global_batch_size=8", "data.num_val_records=8",
         "evaluation.scenes_caption.source.num_records=12"]  # fmt: skip


def output_of(folder, *overrides: str) -> str:
    """Return what a run has written into a file."""
    path = folder / "output"
    with open(path, "wb") as file:
        ended = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *overrides],
            stdout=file, stderr=subprocess.STDOUT, cwd=folder, timeout=900, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    written = path.read_bytes().decode()
    assert ended.returncode == 0, written[-3000:]
    return written


def control_characters(text: str) -> set[str]:
    return set(re.findall(r"[^\S \n]|[\x00-\x08\x0e-\x1f\x7f-\x9f]", text))


def test_what_is_a_control_character():
    assert control_characters("a line\nand é more │ 1%") == set()
    assert control_characters("a\rb\tc\x1b[0m") == {"\r", "\t", "\x1b"}


@pytest.mark.proof
def test_the_default_run_says_little(tmp_path):
    written = output_of(tmp_path)
    assert len(written.splitlines()) < MOST_LINES and control_characters(written) == set()


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["[csv,tensorboard,trackio,wandb]"])
def test_trackers_add_few_lines_and_no_control_characters(tmp_path, logger):
    """Each step is logged here, and the lines of the steps go to the log."""
    written = output_of(tmp_path, *SHORT, f"logger={logger}")
    assert len(written.splitlines()) < MOST_LINES and control_characters(written) == set()
