"""The Java programs: nothing is written beside them, no environment is changed, and what fails says why."""

import os
import stat
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from visllama.evaluation.java import run_java
from visllama.evaluation.ptb_tokenizer import tokenise

PROGRAM = Path(ptbtokenizer.__file__).parent


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"ended with 1: .*NoSuchProgram"):
        run_java(PROGRAM, "64m", ["-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, "NoSuchProgram"], [])


def test_letters_beyond_ascii_in_a_locale_that_knows_none(monkeypatch):
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.setenv(name, "C")
    assert tokenise({"a": ["Ein Bär"]}) == {"a": ["ein bär"]}


def test_java_comes_from_the_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert tokenise({"a": ["A Cat!"]}) == {"a": ["a cat"]}
    assert os.environ["PATH"] == "/nonexistent"


def test_nothing_is_written_beside_the_programs():
    def files():
        return {path for path in PROGRAM.parent.rglob("*") if "__pycache__" not in path.parts}

    before = files()
    mode = stat.S_IMODE(PROGRAM.stat().st_mode)
    PROGRAM.chmod(0o555)
    try:
        tokenise({"a": ["A Cat!"]})
    finally:
        PROGRAM.chmod(mode)
    assert files() == before
