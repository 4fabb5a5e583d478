import json

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from visllama.config.selection import swept_keys
from visllama.errors import ConfigError
from visllama.sweep.best import unseen_evaluations
from visllama.sweep.table import SweepTable


def written(folder, *overrides: str):
    OmegaConf.save({"hydra": {"overrides": {"task": list(overrides)}}}, folder / "multirun.yaml")
    return folder


def test_swept_keys_are_those_with_several_values(tmp_path):
    assert swept_keys(
        written(tmp_path, "optim.lr=1e-4,1e-3", "trainer.max_steps=3", "model/connector=mlp,resampler")
    ) == ["optim.lr", "model/connector"]
    assert swept_keys(written(tmp_path, "stage.trainable=[connector,markers]", "seed=1,2")) == ["seed"]


def add(table, config, job: int, overrides: list[str], result) -> None:
    """Let a table take in what a job of a sweep has returned."""
    hydra = OmegaConf.create(
        {"job": {"num": job}, "overrides": {"task": overrides}, "runtime": {"output_dir": f"/runs/{job}"}}
    )
    hydra.mode = RunMode.MULTIRUN
    table.add(hydra, config, result)


def judged(cider: float, split: str = "val", loss: float = 1.0) -> dict:
    name = "scenes_caption" if split == "test" else f"scenes_caption_{split}"
    evaluation = {"task": "caption", "split": split, "metrics": {"BLEU-1": 1 - cider / 10, "CIDEr": cider}}
    return {"evaluations": {name: evaluation}, "train": {"val/loss": loss}}


def end(
    folder, config, results: dict[str, object], monkeypatch, key: str = "optim.lr", table: SweepTable | None = None
) -> list[tuple[int, list[str]]]:
    """End a sweep of jobs that returned so much; gives which was chosen, and the evaluations that it is judged on."""
    table, chosen = table or SweepTable(), []
    for job, (value, result) in enumerate(results.items()):
        add(table, config, job, [f"{key}={value}"], result)
    monkeypatch.setattr(
        "visllama.sweep.table.judge_unseen",
        lambda run, cfg: chosen.append((int(run.name), list(unseen_evaluations(cfg)))),
    )
    single = OmegaConf.create(
        {"runtime": {"choices": {"hydra/launcher": "basic"}, "config_sources": []}, "overrides": {"hydra": []}}
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: single)
    table.on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))
    return chosen


def test_jobs_are_ranked_and_the_best_alone_is_judged(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3,1e-1"), compose_config("train")
    results = {"1e-4": judged(0.5), "4e-3": judged(2.5), "1e-1": judged(1.0)}
    assert end(folder, config, results, monkeypatch) == [(1, ["scenes_caption"])]
    sweep = json.loads((folder / "sweep.json").read_text())
    assert [row["swept"]["optim.lr"] for row in sweep["jobs"]] == [4e-3, 1e-1, 1e-4]
    assert (sweep["objective"], sweep["direction"], sweep["split"]) == (
        "scenes_caption/CIDEr",
        "higher is better",
        "val",
    )
    assert (folder / "sweep.png").stat().st_size > 1000
    said = " ".join(capsys.readouterr().out.split())
    assert "Sweep by scenes_caption/CIDEr: higher is better" in said and "250.0" in said and "val CIDEr x100" in said
    assert "Best on val: {'optim.lr': 0.004}. It alone is judged on test (scenes_caption):" in said


@pytest.mark.parametrize("typed", [["evaluation=none"], ["judge=false"], ["objective=val/loss"]])
def test_without_an_evaluation_the_loss_ranks(tmp_path, compose_config, monkeypatch, capsys, typed):
    """Nothing of it has failed; and nothing that was not asked for is judged."""
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3,1e-1"), compose_config("train", *typed)
    results = {
        value: judged(9.0) | {"train": {"val/loss": loss}}
        for value, loss in (("1e-4", 0.9), ("4e-3", 0.5), ("1e-1", 2.0))
    }
    if typed != ["objective=val/loss"]:
        results = {value: result | {"evaluations": {}} for value, result in results.items()}
    chosen = end(folder, config, results, monkeypatch)
    assert chosen == ([(1, ["scenes_caption"])] if typed == ["objective=val/loss"] else [])
    sweep = json.loads((folder / "sweep.json").read_text())
    assert [row["swept"]["optim.lr"] for row in sweep["jobs"]] == [4e-3, 1e-4, 1e-1]
    assert (sweep["objective"], sweep["direction"]) == ("val/loss", "lower is better")
    said = capsys.readouterr().out
    assert "Sweep by val/loss: lower is better" in said and "failed" not in said and "0.500" in said


def test_what_measures_nothing_has_not_failed(tmp_path, compose_config, monkeypatch, capsys):
    folder = written(tmp_path, "optim.lr=1e-4,4e-3")
    config = compose_config("train", "judge=false", "trainer.val_check_interval=null")
    assert end(folder, config, {key: {"evaluations": {}, "train": {}} for key in ["1e-4", "4e-3"]}, monkeypatch) == []
    said = capsys.readouterr().out
    assert "nothing to rank by" in said and "failed" not in said
    assert json.loads((folder / "sweep.json").read_text())["objective"] is None


def test_a_failed_job_stands_in_the_table_and_in_the_exit_code(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3,1e-1"), compose_config("train")
    with pytest.raises(SystemExit) as exit:
        end(folder, config, {"1e-4": judged(0.5), "4e-3": ValueError("out of luck"), "1e-1": judged(1.0)}, monkeypatch)
    assert exit.value.code == 1
    said = capsys.readouterr().out
    assert "failed" in said and "1 of 3 jobs failed; the first: out of luck" in said
    assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 3


def test_a_score_that_is_no_number_is_not_the_best(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3"), compose_config("train", "evaluation=none")
    lost, good = ({"evaluations": {}, "train": {"val/loss": loss}} for loss in (float("nan"), 0.7))
    end(folder, config, {"1e-4": lost, "4e-3": good}, monkeypatch)
    ranked = json.loads((folder / "sweep.json").read_text(), parse_constant=pytest.fail)["jobs"]
    assert [row["job"] for row in ranked] == [1, 0] and ranked[1]["scores"] == {"val/loss": None}
    assert "failed" not in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(ConfigError("the disk is full"), 2), (MemoryError("none is left"), 1)])
def test_what_fails_at_the_end_of_a_sweep_fails_the_command(tmp_path, compose_config, monkeypatch, capsys, error, code):
    """Hydra makes a warning of what a callback raises, and exits with 0."""
    cfg = compose_config("train")
    written(tmp_path, "optim.lr=1,2")

    def fail(*_):
        raise error

    monkeypatch.setattr("visllama.sweep.table.write_whole", fail)
    with pytest.raises(SystemExit) as ended:
        end(tmp_path, cfg, {"1": judged(0.5), "2": judged(0.7)}, monkeypatch)
    assert ended.value.code == code and str(error) in capsys.readouterr().err


def test_a_sweep_of_one_is_judged_once(tmp_path, compose_config, monkeypatch):
    written(tmp_path, "optim.lr=1")
    assert end(tmp_path, compose_config("train"), {"1": judged(0.5, "test")}, monkeypatch) == []


def test_seeds_are_repeats_and_none_is_chosen(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "seed=1,2"), compose_config("train")
    results = {"1": judged(0.5, "test", 1.0), "2": judged(0.6, "test", 2.0)}
    assert end(folder, config, results, monkeypatch, "seed") == []
    said = capsys.readouterr().out
    assert "scenes_caption/CIDEr x100 over 2 seeds: mean 55.0, standard deviation 7.1" in said
    assert "val/loss over 2 seeds: mean 1.500, standard deviation 0.707" in said and "test CIDEr x100" in said
    assert json.loads((folder / "sweep.json").read_text())["split"] == "test"


def test_a_stage_2_sweep_is_ranked_by_answers(tmp_path, compose_config, monkeypatch, capsys):
    """Though its captions are better in the other job."""
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3"), compose_config("train", "stage=finetune")

    def result(cider: float, accuracy: float) -> dict:
        answers = {"task": "vqa", "split": "val", "metrics": {"accuracy": accuracy}}
        captions = judged(cider)
        captions["evaluations"] |= {"scenes_vqa_val": answers, "scenes_instruct_val": answers}
        return captions

    chosen = end(folder, config, {"1e-4": result(2.0, 50.0), "4e-3": result(1.0, 60.0)}, monkeypatch)
    assert [job for job, _ in chosen] == [1] and set(chosen[0][1]) == {
        "scenes_caption",
        "scenes_vqa",
        "scenes_instruct",
    }
    sweep = json.loads((folder / "sweep.json").read_text())
    assert sweep["objective"] == "scenes_vqa/accuracy" and sweep["jobs"][0]["scores"]["scenes_vqa/accuracy"] == 60
    assert "Sweep by scenes_vqa/accuracy" in capsys.readouterr().out


def test_what_ranked_the_jobs_is_not_called_test(tmp_path, compose_config, monkeypatch, capsys):
    """VQAv2 is judged on its validation questions: the best has been judged on them before."""
    folder = written(tmp_path, "optim.lr=1e-4,4e-3")
    config = compose_config("train", "evaluation=[vqav2]")
    answers = {"vqav2_val": {"task": "vqa", "split": "val", "metrics": {"accuracy": 61.5}}}
    results = {key: {"evaluations": answers, "train": {}} for key in ["1e-4", "4e-3"]}
    assert end(folder, config, results, monkeypatch) == []
    said = capsys.readouterr().out
    assert "No evaluation of another split is left to judge it on." in said and "judged on test" not in said
    both = compose_config("train", "evaluation=[vqav2,scenes_caption]")
    assert list(unseen_evaluations(both)) == ["scenes_caption"]


@pytest.mark.parametrize(
    ("status", "result"),
    [(JobStatus.COMPLETED, {"evaluations": {}, "train": {}}), (JobStatus.FAILED, ValueError("no"))],
)
def test_a_single_run_leaves_no_row_and_its_error_is_not_told_again(compose_config, capsys, status, result):
    compose_config("train")
    returned = JobReturn(overrides=[], status=status)
    returned.return_value = result
    table = SweepTable()
    table.on_job_end(OmegaConf.create(), returned)
    assert table.rows == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("result", "rows"),
    [
        (None, 0),
        ([{"image": "a"}], 0),
        (ValueError("no"), 1),
        ({"evaluations": {}, "train": {}}, 1),
        ({"evaluations": {}, "provenance": {}}, 0),
    ],
)
def test_jobs_that_train_nothing_leave_a_row_only_when_they_fail(compose_config, result, rows):
    table = SweepTable()
    add(table, compose_config("train"), 0, [], result)
    assert len(table.rows) == rows


def test_a_pruned_job_has_no_rank_though_it_has_a_loss(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3"), compose_config("train", "evaluation=none")
    pruned = {"evaluations": {}, "train": {"val/loss": 0.1, "pruned_step": 40}}
    end(folder, config, {"1e-4": pruned, "4e-3": {"evaluations": {}, "train": {"val/loss": 0.7}}}, monkeypatch)
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [row["job"] for row in jobs] == [1, 0] and jobs[1]["pruned_step"] == 40 and "pruned_step" not in jobs[0]
    said = capsys.readouterr().out
    assert "pruned" in said and "failed" not in said


def test_the_best_is_a_line_to_copy(tmp_path, compose_config, monkeypatch, capsys):
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3"), compose_config("train")
    end(folder, config, {"1e-4": judged(0.5), "4e-3": judged(2.5)}, monkeypatch)
    assert json.loads((folder / "sweep.json").read_text())["best"] == "visllama train optim.lr=4e-3"
    assert "The best as a run of its own:  visllama train optim.lr=4e-3" in capsys.readouterr().out


def test_repeats_have_no_best(tmp_path, compose_config, monkeypatch):
    folder, config = written(tmp_path, "seed=1,2"), compose_config("train")
    end(folder, config, {"1": judged(0.5, "test"), "2": judged(0.6, "test")}, monkeypatch, "seed")
    assert json.loads((folder / "sweep.json").read_text())["best"] is None


def test_intervals_stand_beside_the_scores(compose_config):
    table, result = SweepTable(), judged(0.5)
    result["evaluations"]["scenes_caption_val"]["intervals"] = {"CIDEr": [0.4, 0.6]}
    add(table, compose_config("train"), 0, [], result)
    assert table.rows[0]["intervals"] == {"scenes_caption/CIDEr": [0.4, 0.6]}


def test_jobs_of_an_earlier_start_are_ranked_with_the_others(tmp_path, compose_config, monkeypatch, capsys):
    """Their configs are composed again, and only where they are needed."""
    folder, config = written(tmp_path, "optim.lr=1e-4,4e-3"), compose_config("train")
    table, composed = SweepTable(), []

    def compose(row):
        composed.append(row["job"])
        return config

    add(table, config, 7, ["optim.lr=1e-4"], judged(2.5))
    table.configs.clear()  # another process ran it
    table.compose, table.importances = compose, {"optim.lr": 1.0}
    chosen = end(folder, config, {"4e-3": judged(0.5)}, monkeypatch, table=table)
    assert [job for job, _ in chosen] == [7] and composed == [7]
    sweep = json.loads((folder / "sweep.json").read_text())
    assert [row["job"] for row in sweep["jobs"]] == [7, 0] and sweep["importances"] == {"optim.lr": 1.0}
    assert "What sets the jobs apart (importance, PED-ANOVA): optim.lr 1.00" in capsys.readouterr().out
