import json
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from visllama.training.sweep import SweepTable, swept_keys


def written(folder, *overrides: str):
    OmegaConf.save({"hydra": {"overrides": {"task": list(overrides)}}}, folder / "multirun.yaml")
    return folder


def test_swept_keys_are_those_with_several_values(tmp_path):
    assert swept_keys(
        written(tmp_path, "optim.lr=1e-4,1e-3", "trainer.max_steps=3", "model/connector=mlp,resampler")
    ) == ["optim.lr", "model/connector"]
    assert swept_keys(written(tmp_path, "stage.trainable=[connector,markers]", "seed=1,2")) == ["seed"]


def rows(scores: dict[str, float | None], key: str = "optim.lr") -> list[dict]:
    made = []
    for job, (value, score) in enumerate(scores.items()):
        row = {"job": job, "overrides": [f"{key}={value}"], "folder": f"/runs/{job}"}
        made.append(
            row
            | (
                {"error": "out of luck"}
                if score is None
                else {"scores": {"mine: CIDEr x100": 100 * score}, "split": "val", "val/loss": 1.0}
            )
        )
    return made


def end(folder, made, monkeypatch):
    table, judged = SweepTable(), []
    table.rows = made
    monkeypatch.setattr(SweepTable, "_judge_best", lambda self, best: judged.append(best["job"]))
    table.on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))
    return judged


def test_jobs_are_ranked_and_the_best_alone_is_judged(tmp_path, monkeypatch, capsys):
    folder = written(tmp_path, "optim.lr=1e-4,4e-3,1e-1")
    assert end(folder, rows({"1e-4": 0.5, "4e-3": 2.5, "1e-1": 1.0}), monkeypatch) == [1]
    ranked = json.loads((folder / "sweep.json").read_text())
    assert [row["swept"]["optim.lr"] for row in ranked] == [4e-3, 1e-1, 1e-4]
    assert (folder / "sweep.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "250.0" in said and "val CIDEr x100" in said


def test_a_failed_job_stands_in_the_table_and_in_the_exit_code(tmp_path, monkeypatch, capsys):
    folder = written(tmp_path, "optim.lr=1e-4,4e-3,1e-1")
    with pytest.raises(SystemExit) as exit:
        end(folder, rows({"1e-4": 0.5, "4e-3": None, "1e-1": 1.0}), monkeypatch)
    assert exit.value.code == 1
    said = capsys.readouterr().out
    assert "failed" in said and "1 of 3 jobs failed; the first: out of luck" in said
    assert len(json.loads((folder / "sweep.json").read_text())) == 3


def test_seeds_are_repeats_and_none_is_chosen(tmp_path, monkeypatch, capsys):
    folder = written(tmp_path, "seed=1,2")
    assert end(folder, rows({"1": 0.5, "2": 0.6}, "seed"), monkeypatch) == []
    assert "mine: CIDEr x100 over 2 seeds: mean 55.0, standard deviation 7.1" in capsys.readouterr().out


def test_each_task_is_compared_by_its_own_metric(monkeypatch):
    job = OmegaConf.create({"job": {"num": 0}, "overrides": {"task": []}, "runtime": {"output_dir": "/runs/0"}})
    job.mode = RunMode.MULTIRUN
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    evaluations = {
        "vqav2_val": {"task": "vqa", "split": "val", "metrics": {"accuracy": 61.5}},
        "coco_val": {"task": "caption", "split": "val", "metrics": {"BLEU-1": 0.5, "CIDEr": 1.13}},
    }
    table = SweepTable()
    table.on_job_end(OmegaConf.create(), SimpleNamespace(return_value={"evaluations": evaluations, "train": {}}))
    assert table.rows[0]["scores"] == pytest.approx({"vqav2_val: accuracy": 61.5, "coco_val: CIDEr x100": 113})


def test_single_runs_leave_no_row(compose_config):
    compose_config("train")
    table = SweepTable()
    table.on_job_end(OmegaConf.create(), SimpleNamespace(return_value={}))
    assert table.rows == []


@pytest.mark.parametrize(
    ("result", "rows"), [(None, 0), ([{"image": "a"}], 0), (ValueError("no"), 1), ({"evaluations": {}, "train": {}}, 1)]
)
def test_jobs_that_train_nothing_leave_a_row_only_when_they_fail(monkeypatch, result, rows):
    job = OmegaConf.create({"job": {"num": 0}, "overrides": {"task": []}, "runtime": {"output_dir": "/runs/0"}})
    job.mode = RunMode.MULTIRUN
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    table = SweepTable()
    table.on_job_end(OmegaConf.create(), SimpleNamespace(return_value=result))
    assert len(table.rows) == rows
