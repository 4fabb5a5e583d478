"""Every command of the README is one that works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

README = (ROOT / "README.md").read_text()
RELEASE = (ROOT / "visllama" / "release" / "README.md").read_text()
EVALUATION = (ROOT / "visllama" / "evaluation" / "README.md").read_text()
TABLED = re.findall(r"`((?:visllama|python) [^`]+)` \|$", EVALUATION, re.MULTILINE)
"""The commands that a table names, one a row."""
COMMANDS = [
    line.split(" # ")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README + RELEASE + EVALUATION, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
PROGRAMS = [command for command in COMMANDS if not command.startswith("pip")] + TABLED


def test_the_two_first_commands_are_those_of_the_gate():
    gate = (ROOT / ".ci" / "run").read_text()
    assert COMMANDS[:2] == ["pip install -e . && python train.py", "pip install -e '.[dev]' && pytest"]
    assert "install --quiet ." in gate and "train experiment=smoke" in gate
    assert "-e '.[dev]'" in gate and "\n    pytest\n" in gate


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_command_composes(command, tmp_path):
    """As it stands, but for printing its config; of a sweep, its first job."""
    words = [re.sub(r"^([^\[{']*?=[^,\[{]*),.*", r"\1", word) for word in shlex.split(command) if word != "-m"]
    program = {
        "python": [sys.executable, str(ROOT / words[1])],
        "visllama": [sys.executable, "-m", "visllama", words[1]],
    }[words[0]]
    ended = subprocess.run(
        [*program, *words[2:], "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "seed:" in ended.stdout


def test_every_evaluation_stands_in_its_table():
    table = [line.partition(" | ")[0] for line in EVALUATION.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    there = {path.stem for path in (ROOT / "conf" / "evaluation").glob("*.yaml")}
    assert named == there - {"none", "vqav2_bare"} and len(TABLED) == 10


def test_every_verb_is_in_the_readme():
    for verb in (
        "train.py",
        "evaluate.py",
        "visllama caption",
        "visllama ask",
        "visllama chat",
        "visllama demo",
        "visllama prepare",
        "visllama inspect",
        "visllama plan",
        "visllama report",
    ):
        assert verb in README
