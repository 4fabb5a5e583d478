"""What to download: the command that does it."""

from __future__ import annotations

from visllama.prepare.request import Download


def test_the_command_is_the_one_given_or_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("VISLLAMA_IMG2DATASET", raising=False)
    assert Download("cc3m", "list.tsv", tmp_path).command == "img2dataset"
    monkeypatch.setenv("VISLLAMA_IMG2DATASET", "/env/bin/img2dataset")
    assert Download("cc3m", "list.tsv", tmp_path).command == "/env/bin/img2dataset"
    assert Download("cc3m", "list.tsv", tmp_path, command="/mine").command == "/mine"
