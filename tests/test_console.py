import logging

from rich.table import Table

from visllama.console import say


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
