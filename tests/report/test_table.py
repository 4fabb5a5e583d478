"""A table of runs: means, spreads, the best, and what is not put side by side."""

from __future__ import annotations

from statistics import mean, stdev

import pytest

from tests.support.compared_runs import DECODING, MLP, RESAMPLER, caption_evaluation, config_of, write_run
from visllama.errors import ConfigError
from visllama.report.columns import find_columns
from visllama.report.judged_run import read_runs
from visllama.report.published import Published
from visllama.report.table import as_json, build_table

CIDER = {MLP: [3.9, 4.1, 4.3], RESAMPLER: [4.5, 4.2, 4.35]}
KIND = ["model.connector.kind"]


@pytest.fixture
def nine(tmp_path):
    """Write two connectors with three seeds each; a run may be judged otherwise."""

    def make(**more):
        folders = []
        for connector, values in CIDER.items():
            for seed, value in enumerate(values, start=1):
                is_last = connector == RESAMPLER and seed == 3
                evaluation = caption_evaluation(
                    {"CIDEr": value, "BLEU-4": value / 10}, 400, **(more if is_last else {})
                )
                folder = tmp_path / f"{connector.rpartition('.')[2]}{seed}"
                write_run(
                    folder, {"scenes": evaluation}, config_of(seed, connector=connector), **{"val/loss": 1 / value}
                )
                folders.append(folder)
        return read_runs(folders)

    return make


def table_of(runs, wanted=("CIDEr", "BLEU-4"), rows=KIND, published=(), mixed=False):
    return build_table(runs, rows, ["seed"], find_columns(runs, wanted, None), published, mixed)


def test_each_row_is_mean_and_spread_over_its_seeds(nine):
    table = table_of(nine())
    assert table.labels == ["connector"] and table.headers == ["CIDEr", "BLEU-4"]
    assert [row.labels for row in table.rows] == [["MLPConnector"], ["ResamplerConnector"]]
    for row, values in zip(table.rows, CIDER.values(), strict=True):
        assert row.cells[0].values == values and len(row.runs) == 3
        assert row.cells[0].mean == mean(values) and row.cells[0].spread == stdev(values)
    assert [cell.is_best for row in table.rows for cell in row.cells] == [False, False, True, True]


def test_of_a_loss_the_lowest_is_best(nine):
    table = table_of(nine(), ["val/loss"])
    assert [row.cells[0].is_best for row in table.rows] == [False, True]
    assert table_of(nine()[3:], ["val/loss"]).rows[0].cells[0].is_best is False, "of one there is no best"


def test_the_notes_say_how_the_figures_were_made(nine):
    notes = "\n".join(table_of(nine()).notes)
    assert "scenes: split test, decoding: greedy, at most 40 tokens, tokenizer ptb, 400 images." in notes
    assert "x100" in notes and "git 01234567." in notes and "standard deviation over seed" in notes


def test_one_run_alone_has_no_spread(nine):
    runs = nine()
    table = table_of([runs[0], runs[3]])
    assert [cell.spread for row in table.rows for cell in row.cells] == [None] * 4
    assert "standard deviation" not in "\n".join(table.notes)


def test_what_a_run_lacks_is_absent_and_never_zero(nine):
    runs = nine()
    del runs[0].evaluations["scenes"]["metrics"]["BLEU-4"]
    table = table_of(runs)
    assert table.rows[0].cells[1].values == [0.41, 0.43]
    for run in runs[1:3]:
        del run.evaluations["scenes"]["metrics"]["BLEU-4"]
    cell = table_of(runs).rows[0].cells[1]
    assert (cell.mean, cell.spread, cell.is_best) == (None, None, False)
    assert "scenes/BLEU-4" not in as_json(table_of(runs))["rows"][0]["figures"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"split": "val"}, "split: test in MLPConnector1, val in ResamplerConnector3"),
        ({"prompt": "A"}, "prompt: none in MLPConnector1, A in"),
        ({"tokenizer": "ptb_keep_punctuation"}, "tokenizer: ptb in"),
        ({"decoding": {**DECODING, "num_beams": 5}}, "decoding: num_beams=1 in MLPConnector1, num_beams=5 in"),
        ({"n": 300}, "n: 400 in MLPConnector1, 300 in ResamplerConnector3"),
    ],
)
def test_what_was_judged_otherwise_is_refused_unless_asked_for_and_then_a_column(nine, more, says):
    if "n" in more:
        runs = nine()
        runs[5].evaluations["scenes"]["n"] = more["n"]
    else:
        runs = nine(**more)
    with pytest.raises(ConfigError, match=says):
        table_of(runs)
    table = table_of(runs, mixed=True)
    assert table.labels == ["connector", next(iter(more))]
    assert " / " in table.rows[1].labels[1] and " / " not in table.rows[0].labels[1]
    assert list(as_json(table)["mixed"]["scenes"]) == list(more)


def test_published_figures_are_rows_behind_and_compete(nine):
    published = [Published("Paper", {"CIDEr": 5.0}, "X 2021", "ptb"), Published("Other", {"CIDEr": 1.0}, "Y")]
    table = table_of(nine(), published=published)
    assert [row.is_published for row in table.rows] == [False, False, True, True]
    assert table.rows[2].cells[0].is_best and table.rows[2].cells[1].mean is None
    assert table.notes[-2:] == [
        "† Paper: as published in X 2021 (tokenizer ptb, split not known).",
        "† Other: as published in Y (tokenizer not known, split not known).",
    ]
    with pytest.raises(ConfigError, match="tokenizer=ptb_keep_punctuation"):
        table_of(nine(), published=[published[0]._replace(tokenizer="ptb_keep_punctuation")])
    assert as_json(table)["rows"][2]["published"] == "Paper"


def test_a_published_figure_does_not_stand_in_the_columns_of_two_evaluations(nine):
    runs = nine()
    for run in runs:
        run.evaluations["other"] = run.evaluations["scenes"]
    published = [Published("Paper", {"CIDEr": 5.0}, "X")]
    both = ["scenes/CIDEr", "other/CIDEr"]
    with pytest.raises(ConfigError, match=r"published: Paper has CIDEr.*scenes/CIDEr, other/CIDEr.*columns="):
        table_of(runs, both, published=published)
    assert table_of(runs, both[1:], published=published).rows[-1].cells[0].values == [5.0]
    assert [cell.values for cell in table_of(runs, both, published=published, mixed=True).rows[-1].cells] == [[5.0]] * 2


def test_seeds_alone_are_one_row(nine):
    table = table_of(nine()[:3], rows=[])
    assert (table.labels, table.rows[0].labels, len(table.rows[0].runs)) == (["runs"], ["all"], 3)
