"""`train.py` as a user calls it: short runs through the real program."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.commands import ROOT, evaluate
from tests.support.tars import write
from tests.support.tiny import tiny_parts
from visllama.checkpoint.folder import checkpoints
from visllama.model.weights import build_model, frozen_hashes

SHORT = ["trainer=cpu", "trainer.max_steps=6", "trainer.val_check_interval=0.5", "trainer.log_every_steps=1", "stage.global_batch_size=16",
         "data.num_val_records=20", "evaluation.scenes_caption.source.num_records=20", "model.connector.hidden_dim=64"]  # fmt: skip


def train(*overrides: str, cwd: Path, program=(str(ROOT / "train.py"),)) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *program, *overrides], capture_output=True, text=True, cwd=cwd, timeout=500)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short run with weight decay on, in a folder outside the source tree."""
    folder = tmp_path_factory.mktemp("run with spaces")
    ended = train(*SHORT, "optim.weight_decay=0.2", "hydra.run.dir=out", cwd=folder)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended, folder / "out"


def test_the_run_folder_is_as_the_design_says(run):
    _, folder = run
    expected = {
        "config.yaml",
        ".hydra",
        "metrics.json",
        "weights",
        "checkpoints",
        "evaluations",
        "log.txt",
        "curves.png",
        "metrics.csv",
    }
    assert expected <= {path.name for path in folder.iterdir()}
    assert {path.name for path in (folder / "evaluations" / "scenes_caption").iterdir()} == {
        "predictions.jsonl",
        "predictions.key.json",
        "controls",
        "scores.jsonl",
        "captions.json",
        "references.json",
        "gallery.html",
    }
    assert [checkpoint.step for checkpoint in checkpoints(folder)] == [6, 3]
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / "step_00000006").iterdir())
    assert size < 3_000_000, "trained tensors only"


def test_metrics_json_has_the_keys_of_the_design(run):
    metrics = json.loads((run[1] / "metrics.json").read_text())
    caption = metrics["evaluations"]["scenes_caption"]
    assert (caption["task"], caption["split"], caption["n"]) == ("caption", "test", 20)
    assert set(caption["metrics"]) == {"CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L"}
    assert set(caption["controls"]) == {"shuffled_images", "blank_images"} and len(caption["intervals"]["CIDEr"]) == 2
    assert (
        metrics["train"]["steps"] == 6
        and metrics["train"]["samples"] == 96
        and metrics["train"]["samples_per_second"] > 0
    )
    assert {"versions", "seed", "overrides", "model"} <= set(metrics["provenance"])
    assert {part: len(sha) for part, sha in metrics["train"]["frozen_sha256"].items()} == {
        "vision_encoder": 64,
        "language_model": 64,
    }


def test_frozen_weights_are_those_of_the_shipped_files(run):
    """After training with weight decay 0.2, the hashes are of the backbones as they lie on disk."""
    model = build_model(tiny_parts(), ("connector", "markers"))
    shipped = frozen_hashes(model.load_base_weights())
    assert json.loads((run[1] / "metrics.json").read_text())["train"]["frozen_sha256"] == shipped


def test_weights_hold_trained_tensors_only(run):
    names = set(load_file(run[1] / "weights" / "visllama.safetensors"))
    assert names == {
        "markers",
        "connector.hidden.weight",
        "connector.hidden.bias",
        "connector.output.weight",
        "connector.output.bias",
    }


def test_the_terminal_shows_what_a_person_wants(run):
    said = run[0].stdout
    for words in (
        "language_model",
        "frozen",
        "trained",
        "5,334",
        "step 3",
        "val-000000:",
        "shuffled images",
        "CIDEr",
        "Wrote",
        "visllama evaluate",
    ):
        assert words in said, words
    assert "UNEXPECTED" not in said + run[0].stderr
    assert "CIDEr" in (run[1] / "log.txt").read_text()


def test_the_command_that_a_run_names_gives_the_same_figures(run, tmp_path):
    printed = shlex.split(
        next(line for line in run[0].stdout.splitlines() if "visllama evaluate" in line).split("evaluate", 1)[1]
    )
    ended = evaluate(
        *printed, "trainer=cpu", "evaluation.scenes_caption.source.num_records=20", "hydra.run.dir=again", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, again = (
        json.loads((folder / "metrics.json").read_text())["evaluations"]["scenes_caption"]
        for folder in (run[1], tmp_path / "again")
    )
    for key in ("metrics", "controls", "intervals", "n"):
        assert first[key] == again[key]


@pytest.mark.slow
def test_same_seed_same_losses_and_captions(run, tmp_path):
    ended = train(*SHORT, "optim.weight_decay=0.2", "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]

    def losses(folder):
        with open(folder / "metrics.csv") as file:
            return [(row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]

    assert losses(tmp_path / "out") == losses(run[1])
    captions = [
        (folder / "evaluations" / "scenes_caption" / "captions.json").read_text()
        for folder in (run[1], tmp_path / "out")
    ]
    assert captions[0] == captions[1]


@pytest.mark.slow
def test_wandb_offline_has_config_and_losses(tmp_path):
    ended = train(*SHORT, "logger=wandb", "judge=false", "hydra.run.dir=out", "name=a_name", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    files = list((tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"global_batch_size" in content and b"train/loss" in content and b"a_name" in content


@pytest.mark.slow
def test_a_sweep_ranks_on_validation_also_when_one_job_fails(tmp_path):
    quick = ["evaluation.scenes_caption.controls=[]", "evaluation.scenes_caption.metrics=[CIDEr]"]
    ended = train(*SHORT, *quick, "name=lr", "-m", "optim.lr=4e-3,0,1e-5", cwd=tmp_path)
    assert ended.returncode == 1, "one job failed"
    folder = next((tmp_path / "outputs" / "lr").iterdir())
    sweep = json.loads((folder / "sweep.json").read_text())
    ranked = sweep["jobs"]
    assert len(ranked) == 3 and (sweep["objective"], sweep["split"]) == ("scenes_caption/CIDEr", "val")
    assert "optim.lr=0: must be more than 0" in ranked[2]["error"]
    assert "optim.lr=0: must be more than 0" in ended.stderr and "failed" in ended.stdout
    best, other = (
        json.loads((Path(tmp_path, row["folder"]) / "metrics.json").read_text())["evaluations"] for row in ranked[:2]
    )
    assert set(best) == {"scenes_caption_val", "scenes_caption"} and best["scenes_caption"]["split"] == "test"
    assert set(other) == {"scenes_caption_val"}, "test is scored for the chosen run alone"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr=1e-3", "Did you mean optim.lr?"),
        ("stage=pretrian", "pretrian"),
        ("model/lora=qv", "does not train: name adapter there"),
        ("stage.global_batch_size=many", "stage.global_batch_size"),
        ("stage.epochs=0.001", "makes no whole batch"),
    ],
)
def test_wrong_overrides_end_with_a_message_before_any_training(tmp_path, override, says):
    ended = train(override, "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode != 0 and says in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "weights").exists()


@pytest.mark.slow
def test_stage_two_goes_on_from_stage_one(run, tmp_path):
    """LoRA, questions, conversations, instructions and captions; judged by all three, and the frozen stay frozen."""
    short = [*SHORT[:-1], *(f"evaluation.scenes_{name}.source.num_records=12" for name in ("vqa", "instruct"))]
    ended = train("stage=finetune", f"init_from={run[1] / 'weights'}", *short, "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["evaluations"]) == ["scenes_vqa", "scenes_caption", "scenes_instruct"]
    assert metrics["evaluations"]["scenes_vqa"]["n"] > 12 and metrics["evaluations"]["scenes_instruct"]["n"] == 12
    first = json.loads((run[1] / "metrics.json").read_text())
    assert metrics["train"]["frozen_sha256"] == first["train"]["frozen_sha256"]
    by_source = {name for name in metrics["train"] if name.startswith("train/loss/") or name.startswith("val/loss/")}
    names = ("scenes", "scenes_questions", "scenes_conversations", "scenes_instructions")
    assert {f"val/loss/{name}" for name in names} <= by_source
    trained = load_file(tmp_path / "out" / "weights" / "visllama.safetensors")
    assert len([name for name in trained if "lora_" in name]) == 16
    assert set(load_file(run[1] / "weights" / "visllama.safetensors")) < set(trained)
    words = shlex.split(
        next(line for line in ended.stdout.splitlines() if "visllama evaluate" in line).split("evaluate", 1)[1]
    )
    again = evaluate(*words, *short[-2:], "trainer=cpu", short[-3], "hydra.run.dir=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    judged = json.loads((tmp_path / "again" / "metrics.json").read_text())["evaluations"]
    for name, evaluation in judged.items():
        assert evaluation["metrics"] == metrics["evaluations"][name]["metrics"]


def test_a_folder_that_holds_another_run_is_refused_and_left_alone(run):
    _, folder = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ended = train(*SHORT, "optim.weight_decay=0.3", "hydra.run.dir=out", cwd=folder.parent)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "hydra.run.dir=out: holds a run of another config (optim.weight_decay=0.2 there, 0.3 now)" in ended.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


@pytest.mark.parametrize("folder", ["/proc/nowhere/x", "afile/x"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, folder):
    (tmp_path / "afile").touch()
    ended = train(*SHORT, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert ended.returncode == 2 and f"hydra.run.dir={folder}: cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_real_photos_layout_trains_and_is_judged(tmp_path):
    """`data=shards` on a tar as img2dataset writes it: text beside larger pictures; judged on records held out."""
    write(tmp_path / "photos.tar", 12)
    ended = train(
        *("trainer=cpu", "data=shards", "data.sources.shards.path=photos.tar", "stage.global_batch_size=6"),
        *("data.sources.shards.val_fraction=0.5", "trainer.max_steps=3", "hydra.run.dir=out", "data.log_consumed=true"),
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.count("6 of 12 records held out of photos.tar") == 2, "at the start, and beside the scores"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["evaluations"]["shards_caption"]["origin"] == "6 of 12 records held out of photos.tar"
    rows = (tmp_path / "out" / "evaluations" / "shards_caption" / "predictions.jsonl").read_text().splitlines()
    judged = {json.loads(row)["image_id"] for row in rows}
    consumed = (tmp_path / "out" / "consumed.jsonl").read_text()
    assert len(judged) == 6 and not any(f"/{key}" in consumed for key in judged), "none was trained on"
    assert "shards_caption: val, n = 6" in ended.stdout
    assert "'evaluation=[shards_caption]' evaluation.shards_caption.source.path=photos.tar" in ended.stdout
    assert "evaluation.shards_caption.source.val_fraction=0.5" in ended.stdout
    assert (tmp_path / "out" / "evaluations" / "shards_caption" / "gallery.html").read_text().count("<figure ") == 6


def test_a_profiler_leaves_its_report_in_the_runs_folder(tmp_path):
    ended = train(*SHORT, "profiler=simple", "judge=false", "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    report = (tmp_path / "out" / "fit-profile.txt").read_text()
    assert "run_training_batch" in report and "Total time" in report
