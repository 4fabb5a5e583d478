"""A judgement of VQAv2's size: what it holds in memory, and how often it looks at a picture."""

import json
import subprocess
import sys

import pytest

from tests.support.commands import ROOT


def judge(folder, num_pictures: int) -> dict:
    script = ROOT / "tests" / "scripts" / "judge_full_size.py"
    command = [sys.executable, str(script), str(folder), str(num_pictures)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_pictures_are_never_all_held(tmp_path):
    """300 photos of 100 KB are 30 MB, decoded 276 MB: what grows is their texts and the 64 of a batch."""
    found = judge(tmp_path, 300)
    assert found["n"] == 1500 and found["decoded"] == found["encoded"] == 300
    assert found["peak_mb"] - found["before_mb"] < 100


@pytest.mark.proof
def test_a_judgement_of_vqav2s_size(tmp_path):
    found = judge(tmp_path, 40_000)
    assert found["n"] == 200_000 and found["decoded"] == found["encoded"] == 40_000
    assert found["peak_mb"] < 1500
