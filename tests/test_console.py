import logging

from rich.table import Table

from visllama.console import say


def test_the_log_gets_what_the_terminal_gets(capsys, caplog):
    table = Table("metric")
    table.add_row("CIDEr")
    with caplog.at_level(logging.INFO, logger="visllama"):
        say(table, "a/b/c")
    assert "CIDEr" in capsys.readouterr().out
    assert "CIDEr" in caplog.text and "a/b/c" in caplog.text and "\x1b" not in caplog.text
