"""What wandb is given, read back from its file; and that a run without a network is kept offline, after one warning."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from tests.support.commands import ROOT
from tests.support.wandb_files import read_wandb_run, read_wandb_runs
from visllama.tracking.wandb_tracker import _without_key

PROGRAM = """
import json, sys
from pathlib import Path
from PIL import Image
from visllama.tracking.tracker import Picture
from visllama.tracking.wandb_tracker import WandbTracker

settings = json.loads(sys.argv[1])
folder = Path(settings.pop("folder"))
go_on = settings.pop("go_on", None)
steps = settings.pop("steps", [0, 1, 2])
tracker = WandbTracker("visllama", "a run", "a group", ["x"], str(folder), id="run-1", **settings)
if go_on is not None:
    tracker.go_on(go_on, {step: {"train/loss"} for step in range(go_on, 3)})
tracker.log_hyperparams({"optim": {"lr": 0.004}, "provenance": {"git": {"commit": "abc"}}})
for step in steps:
    tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
said = Picture("scenes", "k", Image.new("RGB", (7, 5), "red"), "", "a cat", "a dog")
tracker.log_pictures("val/pictures", [said, said._replace(key="l", image=None)], 2)
tracker.log_rows("scores", ["metric", "score"], [["CIDEr", 1.13]], 3)
(folder / "gallery.html").write_text("<!doctype html><title>a gallery</title>")
tracker.log_page("scenes_caption/gallery", folder / "gallery.html", 3)
(folder / "weights").mkdir(exist_ok=True)
(folder / "weights" / "visllama.json").write_text("{}")
tracker.log_weights(folder / "weights")
tracker.close(0)
"""
KEY = "c0ffee" * 6 + "cafe"


def track(folder, environment=(), **settings) -> subprocess.CompletedProcess:
    """Use the tracker in a process of its own: wandb keeps a service for each."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    variables |= {"PYTHONPATH": str(ROOT), "HOME": str(folder / "home"), **dict(environment)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({"folder": str(folder), **settings})],
        capture_output=True, text=True, timeout=200, env=variables, cwd=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_all_that_a_run_logs_is_in_its_file(tmp_path):
    ended = track(tmp_path, log_weights=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    run = read_wandb_run(tmp_path)
    assert (run.run_id, run.name, run.group, run.tags, run.exit_code) == ("run-1", "a run", "a group", ["x"], 0)
    assert run.config["optim"] == {"lr": 0.004} and run.config["provenance"]["git"]["commit"] == "abc"
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in run.rows if "train/loss" in row]
    assert losses == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    (row,) = [row for row in run.rows if "val/pictures" in row]
    first, second = run.table(row, "val/pictures")
    assert row["trainer/global_step"] == 2 and second["picture"] is None
    assert (first["text"], first["reference"], first["picture"]["caption"]) == ("a cat", "a dog", "a cat")
    assert Image.open(first["picture"]["file"]).size == (7, 5)
    assert first["picture"]["file"].is_relative_to(tmp_path / "wandb"), "with the run, not in a home"
    (row,) = [row for row in run.rows if "scores" in row]
    assert run.table(row, "scores") == [{"metric": "CIDEr", "score": 1.13}]
    (row,) = [row for row in run.rows if "scenes_caption/gallery" in row]
    assert "a gallery" in (run.files / row["scenes_caption/gallery"]["path"]).read_text()
    assert run.own_artifacts == {"weights-run-1": {"visllama.json"}}


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run_and_no_step_comes_twice(tmp_path):
    assert track(tmp_path).returncode == 0
    assert track(tmp_path, go_on=1, steps=[1, 2, 3, 4]).returncode == 0
    first, second = read_wandb_runs(tmp_path)
    assert first.run_id == second.run_id and first.own_artifacts == {}
    steps = [row["trainer/global_step"] for run in (first, second) for row in run.rows if "train/loss" in row]
    assert steps == [0, 1, 2, 3, 4]


def silent_server() -> socket.socket:
    """Return a server that takes connections, and never answers."""
    return socket.create_server(("127.0.0.1", 0))


class Failing(BaseHTTPRequestHandler):
    """Answer every request with an error of the server."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "silent", "failing"])
def test_without_a_network_there_is_one_warning_and_the_run_is_kept_offline(tmp_path, kind):
    """The time of the process is bound by `timeout`: wandb alone would try for 90 s, and then fail."""
    server = HTTPServer(("127.0.0.1", 0), Failing) if kind == "failing" else silent_server()
    port = server.server_address[1] if kind == "failing" else server.getsockname()[1]
    if kind == "failing":
        threading.Thread(target=server.serve_forever, daemon=True).start()
    elif kind == "closed":
        server.close()
    environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    ended = track(tmp_path, environment, offline=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("wandb cannot be used now") == 1, ended.stdout
    assert "\x1b" not in ended.stdout + ended.stderr, "no colour in a file"
    assert "the run is kept offline in" in ended.stdout and KEY not in ended.stdout + ended.stderr
    run = read_wandb_run(tmp_path)
    assert run.exit_code == 0 and len([row for row in run.rows if "train/loss" in row]) == 3


def test_a_key_at_the_end_of_what_is_shown_is_not_printed_in_part(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    message = _without_key("x" * 290 + KEY)
    assert KEY[:4] not in message and message.endswith("$WANDB_API")
