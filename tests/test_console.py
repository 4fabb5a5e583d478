import logging

import pytest
from rich.table import Table

from visllama import console
from visllama.console import number, say


@pytest.fixture(autouse=True)
def nothing_said_before():
    console._UNLOGGED.clear()


def test_what_is_said_before_there_is_a_log_stands_in_it_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest has a file of its own there
    say("the data is damaged")
    root, file = logging.getLogger(), logging.FileHandler(tmp_path / "log.txt")
    root.addHandler(file)
    try:
        say("it trains")
        say("it ends")
    finally:
        root.removeHandler(file)
        file.close()
    assert (tmp_path / "log.txt").read_text().splitlines() == ["the data is damaged", "it trains", "it ends"]


def test_what_is_logged_before_there_is_a_log_goes_there_and_not_to_the_terminal(capsys, tmp_path, monkeypatch):
    terminal = logging.StreamHandler()
    root, file = logging.getLogger(), logging.FileHandler(tmp_path / "log.txt")
    monkeypatch.setattr(root, "handlers", [terminal])
    with console.before_the_log():
        logging.getLogger("visllama.data").warning("again in 2 s")
    assert root.handlers == [terminal]
    root.handlers.append(file)
    say("it trains")
    file.close()
    assert (tmp_path / "log.txt").read_text().splitlines() == ["again in 2 s", "it trains"]
    assert "again" not in "".join(capsys.readouterr())


def test_the_log_gets_what_the_terminal_gets_once(capsys, tmp_path):
    table = Table("metric")
    table.add_row("CIDEr")
    root, file = logging.getLogger(), logging.FileHandler(tmp_path / "log.txt")
    root.addHandler(file)
    try:
        say(table, "a/b/c evaluation=[scenes]")
    finally:
        root.removeHandler(file)
        file.close()
    said, log = capsys.readouterr(), (tmp_path / "log.txt").read_text()
    assert said.out.count("CIDEr") == 1 and "CIDEr" not in said.err
    assert log.count("CIDEr") == 1 and "a/b/c evaluation=[scenes]" in log and "\x1b" not in log


@pytest.mark.parametrize(
    ("count", "written"),
    [(27, "27"), (12_288, "12,288"), (999_999, "999,999"), (1e6, "1.00e6"), (6_738_415_616, "6.74e9")],
)
def test_a_count_is_written_in_three_digits(count, written):
    assert number(count) == written
