"""Tables hold the figures, in 80 columns, and of many vectors those that matter."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from tests.support.found_study import facts, score, study
from visllama.inspect.connector.tables import MOST_ROWS, ablation_table, loss_table, notes, vectors_table


def printed(table) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(table, highlight=False, soft_wrap=True)  # as `say` does
    return console.file.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return line.split()


def test_what_is_lost_with_the_picture():
    lines = printed(ablation_table(study()))
    assert cells(lines[2]) == ["whole", "100.0"]
    assert cells(lines[3]) == ["shuffled", "images", "30.0", "-70.0", "-75.0", "to", "-65.0", "100%"]
    assert len(lines) == 2 + 5, "vectors have a table of their own"


def test_what_is_lost_with_each_vector():
    lines = printed(loss_table(study()))
    assert cells(lines[3]) == ["2", "-40.0", "-45.0", "to", "-35.0", "-50.0", "-55.0", "to", "-45.0", "75.0"]


def test_what_each_vector_is_like():
    lines = printed(vectors_table(study()))
    assert cells(lines[3]) == ["2", "4.0", "90%", "60%/20%", "Ġred", "50%", "Ġred", "50%", "red", "9/10"]
    assert max(map(len, lines)) <= 80


def test_long_tokens_are_cut_and_figures_are_not():
    found = study()
    reading = replace(found.vectors[1].nearest, tokens=[("Ġextraordinarily", 1.0)])
    wide = replace(found.vectors[1], norm=66.4, varies=1.0, nearest=reading, unembedding=reading)
    lines = printed(vectors_table(replace(found, vectors=[found.vectors[0], wide])))
    assert cells(lines[3]) == ["2", "66.4", "100%", "60%/20%", "Ġextraordina…", "Ġextraordinari…", "red", "9/10"]
    assert max(map(len, lines)) <= 80


def test_of_many_vectors_those_are_shown_whose_removal_costs_most():
    found = study()
    costs = [score(kind, (k + 1,), 1 - k / 100) for kind in ("removed", "frozen", "alone") for k in range(30)]
    many = replace(found, ablations=found.ablations[:5] + costs, vectors=[facts(k + 1, 0.5) for k in range(30)])
    for table in (loss_table(many), vectors_table(many)):
        shown = [int(cells(line)[0]) for line in printed(table)[2:]]
        assert shown == list(range(30 - MOST_ROWS + 1, 31))
    assert "Shown: the 16 whose removal costs most" in notes(many) and "Shown" not in notes(found)
    assert all(len(line) <= 80 for line in notes(many).splitlines())
