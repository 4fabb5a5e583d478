"""Whole runs with every tracker: what each holds, that nothing leaves the machine, and that no key is written."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from tests.support.wandb_files import read_wandb_run, read_wandb_runs
from tests.support.watched import CANARIES, Watched, can_trace

pytest.importorskip("tensorboard")
pytest.importorskip("trackio")
from tests.support.tensorboard_files import read_events
from tests.support.trackio_files import read_trackio_run

pytestmark = pytest.mark.proof  # minutes: tests/tracking has each tracker by itself
ALL = "logger=[csv,wandb,tensorboard,trackio]"
SHORT = ["trainer=cpu", "stage.global_batch_size=8", "data.num_val_records=8", "trainer.log_every_steps=1", "trainer.max_steps=4",
         "trainer.val_check_interval=2", "evaluation.scenes_caption.source.num_records=12", "evaluation.scenes_caption.metrics=[CIDEr]",
         "model.connector.hidden_dim=64"]  # fmt: skip
SIZE = (48, 48)
"""The size of a scene's picture."""
WEIGHTS = ["logger.wandb.log_weights=true", "logger.trackio.log_weights=true"]
BREAKS = """
import os

from lightning.pytorch.callbacks import Callback


class Breaks(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4 and "BREAKS" in os.environ:
            raise RuntimeError("broken here")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def tracked(place):
    """Train and judge with all trackers."""
    ended = place.run("train", *SHORT, ALL, *WEIGHTS, "name=whole", "hydra.run.dir=run", is_traced=can_trace())
    assert ended.returncode == 0, ended.stderr[-3000:]
    return place.work / "run"


def rows_of_csv(folder) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def figures_of_csv(folder, name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in rows_of_csv(folder) if name in row]


NAMES = (
    "train/loss", "train/gradient_norm", "train/samples_per_second", "train/target_tokens_per_second", "train/samples_total",
    "train/target_tokens_total", "train/model_flops_per_second", "train/peak_memory_gib", "train/data_wait_s", "train/step_s",
    "lr/connector", "val/loss",
)  # fmt: skip


@pytest.mark.slow
def test_the_table_has_every_figure(tracked):
    for name in NAMES:
        steps = [step for step, _ in figures_of_csv(tracked, name)]
        assert steps == ([1, 3] if name == "val/loss" else [0, 1, 2, 3]), name
    assert [total for _, total in figures_of_csv(tracked, "train/samples_total")] == [8, 16, 24, 32]


@pytest.mark.slow
def test_wandb_holds_the_run(tracked):
    run = read_wandb_run(tracked)
    assert (run.name, run.group, run.exit_code) == ("whole", "whole", 0)
    assert run.config["optim"]["lr"] == 4e-3 and "commit" in (run.config["provenance"]["git"] or {"commit": ""})
    for name in NAMES:
        found = [(row["trainer/global_step"], row[name]) for row in run.rows if name in row]
        assert found == [(step, pytest.approx(value)) for step, value in figures_of_csv(tracked, name)], name
    validations = [row for row in run.rows if "val/pictures" in row]
    assert [row["trainer/global_step"] for row in validations] == [1, 3]
    for row in validations:
        pictures = run.table(row, "val/pictures")
        assert len(pictures) == 3
        for picture in pictures:
            assert picture["picture"]["caption"] == picture["text"] and picture["reference"]
            assert Image.open(picture["picture"]["file"]).size == SIZE
    scores = json.loads((tracked / "metrics.json").read_text())["evaluations"]["scenes_caption"]
    (row,) = [row for row in run.rows if "scores" in row]
    table = {(score["pictures"], score["metric"]): score["score"] for score in run.table(row, "scores")}
    assert table["true", "CIDEr"] == scores["metrics"]["CIDEr"]
    assert set(table) == {("true", "CIDEr"), *((control, "CIDEr") for control in scores["controls"])}
    (row,) = [row for row in run.rows if "scenes_caption/gallery" in row]
    page = (run.files / row["scenes_caption/gallery"]["path"]).read_text()
    assert page == (tracked / "evaluations" / "scenes_caption" / "gallery.html").read_text()
    ((name, files),) = run.own_artifacts.items()
    assert name.startswith("weights-") and files == {"visllama.json", "visllama.safetensors"}


@pytest.mark.slow
def test_tensorboard_holds_the_run(tracked):
    events = read_events(tracked / "tensorboard")
    for name in NAMES:
        # TensorBoard keeps fp32.
        assert events.scalars[name] == [(s, pytest.approx(v, rel=1e-6)) for s, v in figures_of_csv(tracked, name)], name
    assert "      lr: 0.004" in events.texts["config"][0][1] and "    provenance:" in events.texts["config"][0][1]
    assert [step for step, _ in events.texts["val/pictures"]] == [1, 3]
    pictures = {name: images for name, images in events.images.items() if name.startswith("val/pictures/scenes/")}
    assert len(pictures) == 3
    for images in pictures.values():
        assert [step for step, _ in images] == [1, 3]
        assert Image.open(io.BytesIO(images[0][1])).size == SIZE
    assert "| scenes\\_caption | test | 12 | true | CIDEr |" in events.texts["scores"][0][1]
    assert "gallery.html" in events.texts["scenes_caption/gallery"][0][1]


@pytest.mark.slow
def test_trackio_holds_the_run(tracked):
    run = read_trackio_run(tracked / "trackio")
    assert run.name.startswith("whole ") and run.group == "whole" and run.config["optim"]["lr"] == 4e-3
    for name in NAMES:
        found = [(step, pytest.approx(value)) for step, value in figures_of_csv(tracked, name)]
        assert run.values(name) == found, name
    assert [step for step, _ in run.values("val/pictures")] == [1, 3]
    for _, table in run.values("val/pictures"):
        for row in table["_value"]:
            assert row["picture"]["caption"] == row["text"]
            assert Image.open(tracked / "trackio" / "media" / row["picture"]["file_path"]).size == SIZE
    assert len(run.values("scores")) == len(run.values("scenes_caption/gallery")) == 1
    assert run.artifacts == ["weights"]


@pytest.mark.slow
def test_nothing_leaves_the_machine(place, tracked):
    assert place.connections() == []


@pytest.mark.slow
def test_a_run_that_broke_and_goes_on_is_one_run_in_each_tracker(tmp_path):
    place = Watched(tmp_path)
    (place.work / "breaks.py").write_text(BREAKS)
    words = [
        *SHORT,
        ALL,
        "plugins=[breaks]",
        "+callbacks.breaks._target_=breaks.Breaks",
        "hydra.run.dir=run",
        "judge=false",
    ]
    ended = place.run("train", *words, BREAKS="1")
    assert ended.returncode == 1 and "broken here" in ended.stderr
    ended = place.run("train", "resume=run")
    assert ended.returncode == 0 and "Going on from step 2 of 4" in ended.stdout, ended.stderr[-3000:]

    folder = place.work / "run"
    first, second = read_wandb_runs(folder)
    assert first.run_id == second.run_id and (first.exit_code, second.exit_code) == (1, 0)
    rows = [*first.rows, *second.rows]
    trackio = read_trackio_run(folder / "trackio")
    events = read_events(folder / "tensorboard")
    for name, steps in (("train/loss", [0, 1, 2, 3]), ("val/loss", [1, 3]), ("train/samples_total", [0, 1, 2, 3])):
        assert [row["trainer/global_step"] for row in rows if name in row] == steps, name
        assert [step for step, _ in trackio.values(name)] == steps, name
        assert [step for step, _ in events.scalars[name]] == steps, name
    assert [row["trainer/global_step"] for row in rows if "val/pictures" in row] == [1, 3]
    assert [value for _, value in figures_of_csv(folder, "train/samples_total")] == [8, 16, 24, 32]


@pytest.mark.slow
def test_no_key_is_written_by_train_evaluate_a_sweep_or_a_crash(place, tracked):
    (place.work / "breaks.py").write_text(BREAKS)
    judged = place.run("evaluate", f"weights={tracked / 'weights'}", "trainer=cpu", *SHORT[6:8], "hydra.run.dir=judged")
    assert judged.returncode == 0, judged.stderr[-3000:]
    swept = place.run("train", *SHORT, ALL, "judge=false", "name=swept", "-m", "seed=1,2")
    assert swept.returncode == 0, swept.stderr[-3000:]
    breaks = ["plugins=[breaks]", "+callbacks.breaks._target_=breaks.Breaks", "hydra.run.dir=broken"]
    broken = place.run("train", *SHORT, ALL, *breaks, BREAKS="1")
    assert broken.returncode == 1 and "broken here" in broken.stderr
    refused = place.run("train", ALL, f"+logger.wandb.api_key={CANARIES['WANDB_API_KEY']}", "-m", "seed=1,2")
    assert refused.returncode == 2 and "logger.wandb.api_key: holds what looks like a key" in refused.stderr

    for ended in (judged, swept, broken, refused):
        assert not any(key in ended.stdout + ended.stderr for key in CANARIES.values())
    assert place.places_of_keys() == []
    folders = list(place.work.glob("outputs/swept/*/*/"))
    runs = [(read_wandb_run(f), read_trackio_run(f / "trackio")) for f in folders if (f / "wandb").is_dir()]
    assert len(runs) == 2 and {run.group for pair in runs for run in pair} == {"swept"}, "jobs share a group"


def test_what_watches_sees_connections_and_keys(tmp_path):
    place = Watched(tmp_path)
    (tmp_path / "home" / "netrc").write_text(f"password {CANARIES['WANDB_API_KEY']}")
    assert place.places_of_keys() == ["WANDB_API_KEY in home/netrc"]

    program = "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80))\nexcept OSError:\n    pass"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "WATCHED_CONNECTIONS": str(tmp_path / "seen")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=100)
    assert [line.split(" by ")[0] for line in place.connections()] == ["look up '192.0.2.1'"]
    (tmp_path / "traced").write_text(
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.7")}, 16) = 0\n'
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr("127.0.0.1")}, 16) = 0\n'
    )
    assert place.connections()[1:] == ["connect 192.0.2.7"]
