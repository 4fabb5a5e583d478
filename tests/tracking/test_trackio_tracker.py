"""What trackio is given, read back from its database; and that its process has no key and asks nobody."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.support.trackio_files import read_trackio_run
from visllama.tracking.tracker import Picture
from visllama.tracking.trackio_tracker import TrackioTracker, writer_environment

pytest.importorskip("trackio")


@pytest.fixture
def make(tmp_path):
    def tracker(**more) -> TrackioTracker:
        made = TrackioTracker("visllama", "lr optim.lr=1e-3", str(tmp_path / "trackio"), "lr", "run-12345678", **more)
        made.log_hyperparams({"optim": {"_target_": "torch.optim.AdamW", "lr": 0.004}})
        return made

    return tracker


def test_all_that_a_run_logs_is_in_its_database(make, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "visllama.json").write_text("{}")
    (tmp_path / "gallery.html").write_text("<!doctype html><title>a gallery</title>")
    tracker = make(log_weights=True)
    tracker.log_metrics({"train/loss": 2.5, "train/samples_total": 64}, 0)
    tracker.log_pictures("val/pictures", [Picture("scenes", "k", Image.new("RGB", (7, 5)), "", "a cat", "a dog")], 0)
    tracker.log_rows("scores", ["metric", "score"], [["CIDEr", 1.13]], 1)
    tracker.log_page("scenes_caption/gallery", tmp_path / "gallery.html", 1)
    tracker.log_weights(tmp_path / "weights")
    tracker.close(0)
    tracker.close(0)  # again changes nothing

    run = read_trackio_run(tmp_path / "trackio")
    assert (run.name, run.group) == ("lr optim.lr=1e-3 12345678", "lr")
    assert run.config["optim"] == {"_target_": "torch.optim.AdamW", "lr": 0.004}
    assert run.values("train/loss") == [(0, 2.5)] and run.values("train/samples_total") == [(0, 64.0)]
    ((step, table),) = run.values("val/pictures")
    (row,) = table["_value"]
    assert (step, row["text"], row["reference"], row["picture"]["caption"]) == (0, "a cat", "a dog", "a cat")
    media = tmp_path / "trackio" / "media"
    assert Image.open(media / row["picture"]["file_path"]).size == (7, 5)
    assert run.values("scores")[0][1]["_value"] == [{"metric": "CIDEr", "score": 1.13}]
    page = run.values("scenes_caption/gallery")[0][1]
    assert (media / page["file_path"]).read_text() == (tmp_path / "gallery.html").read_text()
    assert run.artifacts == ["weights"]


def test_a_run_that_goes_on_is_the_same_run_and_no_step_comes_twice(make, tmp_path):
    first = make()
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step)
    first.close(1)
    second = make()
    second.go_on(2, {2: {"train/loss"}, 3: {"train/loss"}})
    for step in range(2, 6):
        second.log_metrics({"train/loss": float(step)}, step)
    second.close(0)
    run = read_trackio_run(tmp_path / "trackio")  # which asserts that it is one run
    assert run.values("train/loss") == [(step, float(step)) for step in range(6)]


def test_weights_are_kept_only_where_that_was_asked(make, tmp_path):
    (tmp_path / "weights").mkdir()
    tracker = make()
    tracker.log_weights(tmp_path / "weights")
    tracker.close(0)
    assert not (tmp_path / "trackio").exists()


def test_a_process_that_is_gone_is_told_of_and_stops_no_run(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    tracker = make()
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0}, step)
    tracker.close(0)
    assert "logger.trackio: its process has ended with code 1" in capsys.readouterr().out


def test_its_process_has_no_key_no_server_and_no_network(monkeypatch, tmp_path):
    secret = {"HF_TOKEN": "hf_x", "WANDB_API_KEY": "x", "TRACKIO_SPACE_ID": "me/mine", "TRACKIO_SERVER_URL": "http://x"}
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    environment = writer_environment(tmp_path)
    assert not set(secret) & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["TRACKIO_DIR"] == str(tmp_path)
