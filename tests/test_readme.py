"""The pages: every command works, every link resolves, and the same commands are named everywhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.commands import ROOT

FOLDERS = ("conf", "visllama", "tests", ".github")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
RECIPES = ROOT / "visllama" / "README.md"
"""The recipes of parts of one's own: `test_own_parts.py` runs their commands, beside the files of each."""
PROGRAMS = ("python train.py ", "python evaluate.py ", "visllama ")
OTHERS = {"pip", "pytest", "ruff", ".ci/run"}
"""What else a page may have a reader type."""
EVALUATION = (ROOT / "visllama" / "evaluation" / "README.md").read_text()
GATE = (ROOT / ".ci" / "run").read_text()


def lines_of(page: Path) -> list[str]:
    """Return the command lines of a page's bash blocks, without what is said behind each."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.split(" # ")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def commands_in_tables(page: Path) -> list[str]:
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in spans if span.startswith(PROGRAMS) and "..." not in span]


LINES = {page: lines_of(page) for page in PAGES if page != RECIPES}
COMMANDS = list(
    dict.fromkeys(
        command
        for page, lines in LINES.items()
        for command in [*lines, *commands_in_tables(page)]
        if command.startswith(PROGRAMS)
    )
)


def words_of(command: str) -> tuple[str, list[str]]:
    """Return the verb of a command, and its overrides; of a sweep those of the first job."""
    program, *words = shlex.split(command)
    verb = words.pop(0).removesuffix(".py")
    assert program in ("python", "visllama")
    words = [word for word in words if word != "-m"]
    return verb, [re.sub(r"^([^\[{']*?=[^,\[{]*),.*", r"\1", word) for word in words]


VERBS = {words_of(command)[0]: command for command in reversed(COMMANDS)}
"""The first command of each verb."""


def test_there_are_pages_with_commands():
    assert len(PAGES) >= 11 and len(COMMANDS) > 70
    assert set(VERBS) == {
        "train", "evaluate", "caption", "ask", "chat", "demo", "export", "prepare", "inspect", "plan", "report", "benchmark",
    }  # fmt: skip


def test_the_two_first_commands_are_those_of_the_gate():
    assert lines_of(ROOT / "README.md")[:2] == [
        "pip install -e . && python train.py",
        "pip install -e '.[dev]' && pytest",
    ]
    assert "install --quiet ." in GATE and "train experiment=smoke" in GATE
    assert "-e '.[dev]'" in GATE and "\n    pytest\n" in GATE


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command, compose_config):
    verb, words = words_of(command)
    assert compose_config(verb, *words).seed >= 0


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_command_of_a_verb_composes_in_the_program(verb, tmp_path):
    _, words = words_of(VERBS[verb])
    program = [sys.executable, "-m", "visllama", verb]
    if VERBS[verb].startswith("python"):
        program = [sys.executable, str(ROOT / f"{verb}.py")]
    ended = subprocess.run(
        [*program, *words, "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "seed:" in ended.stdout


def test_a_page_has_nothing_else_typed():
    for page, lines in LINES.items():
        for line in lines:
            assert line.startswith(PROGRAMS) or shlex.split(line)[0] in OTHERS, f"{page}: {line}"


def test_every_link_resolves():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" not in target, f"{page}: {target}: no test reads the network"
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_page_is_reached_from_the_first_one():
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            targets = [(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
            waiting += [target / "README.md" if target.is_dir() else target for target in targets]
            waiting = [target for target in waiting if target.suffix == ".md"]
    assert seen == set(PAGES)


def test_the_checkers_are_the_same_everywhere():
    """The gate, the hooks before a commit and the page for developers name one set of commands."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"] for hook in hooks]
    assert all(f"\n    {entry}\n" in GATE for entry in entries)
    assert " && ".join(entries) in lines_of(ROOT / ".github" / "CONTRIBUTING.md")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "leg: [plain, lowest, dev]" in workflow and "set -- plain lowest dev" in GATE


def test_every_evaluation_stands_in_its_table():
    table = [line.partition(" | ")[0] for line in EVALUATION.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    there = {path.stem for path in (ROOT / "conf" / "evaluation").glob("*.yaml")}
    assert named == there - {"none", "vqav2_bare"}
    assert (
        sum(
            command.startswith("visllama prepare")
            for command in commands_in_tables(ROOT / "visllama/evaluation/README.md")
        )
        == 10
    )
