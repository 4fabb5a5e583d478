"""The verb `report`: what it writes, what it prints, and what it refuses before it writes anything."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import ROOT
from tests.support.compared_runs import MLP, RESAMPLER, captioned_run, config_of, write_run
from tests.support.pdflatex import compile_table, needs_pdflatex
from tests.support.verbs import assemble
from visllama.cli import understand, work
from visllama.errors import ConfigError

CIDER = np.linspace(0.5, 1.5, 20)


@pytest.fixture(scope="module")
def written_runs(tmp_path_factory):
    """Two connectors with three seeds each."""
    place = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    for connector, gain in ((MLP, 0.0), (RESAMPLER, 0.2)):
        for seed in (1, 2, 3):
            cider = CIDER + gain + rng.normal(0, 0.05, 20)
            name = f"{connector.rpartition('.')[2]}-{seed}"
            captioned_run(place / name, cider, config=config_of(seed, connector=connector))
    return place


@pytest.fixture
def outputs(written_runs, tmp_path):
    """A folder of its own for a test, in which the runs are `runs/`."""
    shutil.copytree(written_runs, tmp_path / "runs")
    return tmp_path


@pytest.fixture
def report(compose_config, tmp_path, capsys):
    """Run the verb in this process, in `tmp_path`; return `report.json`, and what was printed."""

    def run(*overrides):
        cfg = compose_config("report", *overrides)
        work("report", understand("report", cfg))
        return json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out

    return run


def test_two_runs(outputs, report):
    runs = outputs / "runs"
    content, said = report(f"runs=[{runs}/MLPConnector-1,{runs}/ResamplerConnector-1]")
    scenes = content["evaluations"]["scenes"]
    first = json.loads((runs / "MLPConnector-1" / "metrics.json").read_text())["evaluations"]["scenes"]["metrics"]
    second = json.loads((runs / "ResamplerConnector-1" / "metrics.json").read_text())["evaluations"]["scenes"][
        "metrics"
    ]
    cider = scenes["metrics"]["CIDEr"]
    assert cider["first"] == pytest.approx(first["CIDEr"]) and cider["second"] == pytest.approx(second["CIDEr"])
    assert cider["difference"] == pytest.approx(second["CIDEr"] - first["CIDEr"]) and cider["p"] < 0.001
    assert cider["interval"][0] < cider["difference"] < cider["interval"][1] and scenes["n"] == 20
    assert len(scenes["changed"]["images"]) == 20 and "git" in content["provenance"]
    assert {path.name for path in outputs.iterdir()} == {"runs", "report.json", "report.html", "curves.png"}
    page = (outputs / "report.html").read_text()
    assert page.count("<figure") == 20 and "data:image/png" in page.partition("curves")[2]
    assert "CIDEr" in said and max(len(line) for line in said.splitlines() if "│" in line) <= 80
    assert content["runs"][0]["name"] == "MLPConnector-1"


def test_fewer_pictures_if_that_is_asked_for(outputs, report):
    runs = outputs / "runs"
    word = f"runs=[{runs}/MLPConnector-1,{runs}/ResamplerConnector-1]"
    content, _ = report(word, "num_pictures=4", "evaluations=scenes")
    assert len(content["evaluations"]["scenes"]["changed"]["images"]) == 4
    assert (outputs / "report.html").read_text().count("<figure") == 4


def test_many_runs_are_rows_of_what_they_differ_in(outputs, report):
    content, said = report(f"runs=[{outputs}/runs/*]")
    assert [row["setting"] for row in content["rows"]] == [
        {"connector": "MLPConnector"},
        {"connector": "ResamplerConnector"},
    ]
    for row in content["rows"]:
        values = row["figures"]["scenes/CIDEr"]["values"]
        assert len(values) == 3 and row["figures"]["scenes/CIDEr"]["mean"] == pytest.approx(np.mean(values))
    assert "100.7 ± " in said or "±" in said
    assert (outputs / "table.txt").is_file() and (outputs / "curves.png").is_file()
    assert "visllama report 'runs=[" in said


def test_a_table_of_two_runs_is_what_is_asked_for_by_its_keys(outputs, report):
    content, _ = report(f"runs=[{outputs}/runs/*-1]", "columns=CIDEr")
    assert [row["runs"] for row in content["rows"]] == [["MLPConnector-1"], ["ResamplerConnector-1"]]


def test_the_figures_of_every_format_are_those_of_the_files(outputs, report, tmp_path):
    words = [f"runs=[{outputs}/runs/*]", "rows=model.connector.kind", "over=seed", "columns=[CIDEr,BLEU-4]"]
    for form in ("markdown", "latex", "csv"):
        _, said = report(*words, f"format={form}", f"out={tmp_path}/table")
        written = (tmp_path / "table").read_text()
        assert written.strip() in said
        for connector in ("MLPConnector", "ResamplerConnector"):
            metrics = [json.loads(path.read_text()) for path in (outputs / "runs").glob(f"{connector}*/metrics.json")]
            values = [one["evaluations"]["scenes"]["metrics"]["CIDEr"] for one in metrics]
            line = next(line for line in written.splitlines() if line.lstrip("| ").startswith(connector))
            if form == "csv":
                row = next(csv.reader([line]))
                assert float(row[3]) == pytest.approx(np.mean(values)) and float(row[4]) == pytest.approx(
                    np.std(values, ddof=1)
                )
            else:
                figures = re.findall(r"\d+\.\d", line)
                assert figures[:2] == [f"{100 * np.mean(values):.1f}", f"{100 * np.std(values, ddof=1):.1f}"]


BAD = [
    ("RUNS/killed,RUNS/MLPConnector-1", [], r"killed: holds no metrics\.json"),
    ("RUNS/MLPConnector-1", [], "is one run"),
    ("RUNS/no*", [], "it matches nothing"),
    ("RUNS/*-*", ["columns=SPICE"], "columns=SPICE: no run has this figure: there is scenes/CIDEr"),
    ("RUNS/*-*", ["rows=lr"], r"rows=lr: no run's config\.yaml has this key: did you mean optim\.lr"),
    ("RUNS/*-*", ["over=sede"], "over=sede: no run's .* did you mean seed"),
    ("RUNS/*-*", ["rows=optim.lr"], r"differ in model\.connector\.kind too"),
    ("RUNS/*-*", ["evaluations=coco"], "evaluations=coco: no run has it: there is scenes"),
    ("RUNS/*-1", ["evaluations=coco"], "evaluations=coco: MLPConnector-1 has scenes"),
    ("RUNS/*-*", ["format=tex"], "format=tex: did you mean text"),
    ("RUNS/*-*", ["out=RUNS"], "out=.*: a folder"),
    ("RUNS/*-*", ["out=RUNS/no/a.tex"], "out=.*there is no folder"),
    ("RUNS/*-*", ["published=RUNS/no.yaml"], "published=.*: no such file"),
    ("RUNS/*-*", ["num_pictures=-1"], "num_pictures=-1: must be 0 or more"),
    ("RUNS/*-*", ["rows={a: 1}"], "rows=.*: give names, as rows=A,B"),
    ("", [], r"runs=\[\]"),
]


@pytest.mark.parametrize(("runs", "overrides", "says"), BAD)
def test_what_it_refuses(outputs, compose_config, runs, overrides, says):
    (outputs / "runs" / "killed").mkdir()
    place = str(outputs / "runs")
    words = [word.replace("RUNS", place) for word in (f"runs=[{runs}]", *overrides)]
    before = sorted(outputs.rglob("*"))
    with pytest.raises(ConfigError, match=says):
        assemble("report", compose_config("report", *words))
    assert sorted(outputs.rglob("*")) == before


def test_runs_are_what_has_to_be_given(compose_config):
    with pytest.raises(ConfigError, match="no value for runs"):
        assemble("report", compose_config("report"))


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "visllama", "report", *words],
        capture_output=True, text=True, cwd=cwd, timeout=120, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_the_command_as_it_is_typed(outputs):
    """Values with commas are lists, and no sweep; `evaluation`, elsewhere a group, is the key."""
    words = ["runs=[runs/*]", "rows=model.connector.kind,optim.lr", "over=seed", "columns=CIDEr,BLEU-4"]
    ended = command(*words, "evaluation=scenes", "format=csv", "out=table.csv", cwd=outputs)
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader((outputs / "table.csv").open()))
    assert [row["connector"] for row in rows] == ["MLPConnector", "ResamplerConnector"] and rows[0]["lr"] == "0.004"
    folder = next((outputs / "outputs" / "report").iterdir())
    assert {"report.json", "curves.png", "table.csv", "log.txt"} <= {path.name for path in folder.iterdir()}
    assert f"Wrote {folder}" in ended.stdout


def test_a_refusal_leaves_no_folder(outputs):
    ended = command("runs=runs/MLPConnector-1,nowhere", cwd=outputs)
    assert ended.returncode == 2 and "runs=nowhere: no such folder" in ended.stderr
    assert not (outputs / "outputs").exists()


@pytest.mark.slow
@needs_pdflatex
def test_the_latex_of_runs_compiles_with_published_figures(outputs, report, tmp_path):
    (tmp_path / "papers.yaml").write_text("- {name: Clip_Cap & co, metrics: {CIDEr: 1.13}, source: 'Mokady, 2021'}\n")
    words = [f"runs=[{outputs}/runs/*]", "format=latex", f"published={tmp_path}/papers.yaml"]
    _, said = report(*words)
    table = (outputs / "table.tex").read_text()
    assert "Clip\\_Cap \\& co$^\\dagger$" in table and "113.0" in table and table.strip() in said
    assert compile_table(table, tmp_path).stat().st_size > 5000


def test_a_run_that_was_not_judged_is_a_row_of_nothing(outputs, report):
    write_run(outputs / "runs" / "MLPConnector-4", {}, config_of(4))
    content, said = report(f"runs=[{outputs}/runs/MLP*]", "columns=CIDEr")
    assert len(content["rows"][0]["runs"]) == 4 and content["rows"][0]["figures"]["scenes/CIDEr"]["n"] == 3
    assert "(n=3)" in said
