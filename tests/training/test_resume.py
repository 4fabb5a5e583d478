"""Killed and resumed == uninterrupted: the same samples at every step, and the same weights to the bit."""

from __future__ import annotations

import csv
import json
import random
import shutil
import time

import pytest
from safetensors.torch import load_file

from tests.support.runs import RUN, finish, kill, start, wait_for_steps
from visllama.training.callbacks.consumed import read_consumed


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    """With workers on, each resume with another number of them; killed in the middle of whatever it does then."""
    shape = [*RUN, "trainer.max_steps=60", "trainer.checkpoint_every_steps=2"]
    finish(*shape, f"hydra.run.dir={tmp_path / 'whole'}")
    folder, dice, kills = tmp_path / "killed", random.Random(0), 0
    process = start(*shape, "data.num_workers=2", f"hydra.run.dir={folder}")
    while kills < 10:
        done = len(read_consumed(folder / "consumed.jsonl")) if (folder / "consumed.jsonl").is_file() else 0
        wait_for_steps(folder, done + 1 if done else 3, process)  # it has got further than ever, or over its start
        time.sleep(dice.uniform(0, 0.7))
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        process = start(f"resume={folder}", f"data.num_workers={kills % 4}")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0 and kills == 10, said[-3000:]
    assert read_consumed(folder / "consumed.jsonl") == read_consumed(tmp_path / "whole" / "consumed.jsonl")
    whole, killed = (load_file(tmp_path / name / "weights" / "visllama.safetensors") for name in ("whole", "killed"))
    assert all((whole[name] == killed[name]).all() for name in whole)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_00000058", "step_00000060"]


@pytest.mark.slow
def test_saved_with_two_ranks_and_resumed_with_one_three_and_four(tmp_path):
    shape = [*RUN, "trainer.max_steps=10", "trainer.checkpoint_every_steps=4", "trainer.precision=64-true"]
    finish(*shape, f"hydra.run.dir={tmp_path / 'whole'}")
    saved = tmp_path / "saved"
    process = start(*shape, "trainer.devices=2", "trainer/strategy=ddp", f"hydra.run.dir={saved}")
    wait_for_steps(saved, 6, process)
    kill(process)
    expected = read_consumed(tmp_path / "whole" / "consumed.jsonl")
    weights = load_file(tmp_path / "whole" / "weights" / "visllama.safetensors")
    for num_ranks, strategy in ((1, "auto"), (3, "fsdp"), (4, "ddp")):
        folder = tmp_path / f"on_{num_ranks}"
        shutil.copytree(saved, folder)
        said = finish(f"resume={folder}", f"trainer.devices={num_ranks}", f"trainer/strategy={strategy}")
        assert "Going on from step 4 of 10" in said
        assert read_consumed(folder / "consumed.jsonl") == expected, num_ranks
        found = load_file(folder / "weights" / "visllama.safetensors")
        # Ranks add up in another order: rounding in fp64, through ten updates.
        assert max(((found[n] - weights[n]).norm() / weights[n].norm()).item() for n in weights) < 1e-12


@pytest.mark.slow
def test_shards_of_four_ranks_are_read_by_three_and_one(tmp_path):
    shape = [*RUN, "trainer.max_steps=10", "trainer.checkpoint_every_steps=4", "trainer.precision=64-true"]
    finish(*shape, f"hydra.run.dir={tmp_path / 'whole'}")
    saved = tmp_path / "saved"
    process = start(*shape, "trainer.devices=4", "trainer/strategy=fsdp", f"hydra.run.dir={saved}")
    wait_for_steps(saved, 6, process)
    kill(process)
    assert len(list((saved / "checkpoints" / "step_00000004").glob("shard-*"))) == 4, "a file a rank"
    weights = load_file(tmp_path / "whole" / "weights" / "visllama.safetensors")
    for num_ranks, strategy in ((3, "fsdp"), (1, "auto")):
        folder = tmp_path / f"on_{num_ranks}"
        shutil.copytree(saved, folder)
        said = finish(f"resume={folder}", f"trainer.devices={num_ranks}", f"trainer/strategy={strategy}")
        assert "Going on from step 4 of 10" in said
        found = load_file(folder / "weights" / "visllama.safetensors")
        assert max(((found[n] - weights[n]).norm() / weights[n].norm()).item() for n in weights) < 1e-12


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    folder = tmp_path / "run"
    shape = [*RUN, "trainer.max_steps=12", "trainer.checkpoint_every_steps=4"]
    finish(*shape, f"hydra.run.dir={tmp_path / 'whole'}")
    finish(*shape, f"hydra.run.dir={folder}")
    file = folder / "checkpoints" / "step_00000012" / "rest.pt"
    file.write_bytes(file.read_bytes()[:-20])
    said = finish(f"resume={folder}")
    assert "step_00000012: rest.pt has" in said and "passed over" in said and "Going on from step 8 of 12" in said
    found, expected = (load_file(run / "weights" / "visllama.safetensors") for run in (folder, tmp_path / "whole"))
    assert all((found[name] == expected[name]).all() for name in expected)
    for path in folder.glob("checkpoints/*/rest.pt"):
        path.unlink()
    process = start(f"resume={folder}")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "none of its checkpoints is whole" in said


@pytest.mark.slow
def test_auto_goes_on_begins_and_knows_when_it_is_done(tmp_path):
    shape = [
        *RUN,
        "trainer.max_steps=30",
        "trainer.checkpoint_every_steps=2",
        f"paths.outputs={tmp_path}",
        "name=a",
        "resume=auto",
    ]
    process = start(*shape)
    until = time.monotonic() + 100
    while not list(tmp_path.glob("a/*/checkpoints/step_*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    kill(process)
    said = finish(*shape)
    assert "Going on from step" in said and len(list((tmp_path / "a").iterdir())) == 1
    assert "is finished: nothing to do" in finish(*shape)
    assert "Going on from step 30 of 34" in finish(*shape, "trainer.max_steps=34"), "more of it was asked for"
    process = start(*shape, "-m")
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 2 and "resume=auto goes on with one run: leave out -m" in said


@pytest.mark.slow
def test_another_order_is_refused_before_any_weight_is_loaded(tmp_path):
    folder = tmp_path / "run"
    process = start(*RUN, "trainer.max_steps=30", "trainer.checkpoint_every_steps=1", f"hydra.run.dir={folder}")
    wait_for_steps(folder, 3, process)
    kill(process)
    process = start(f"resume={folder}", "seed=2", "optim.lr=0.5")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "optim.lr=0.004 there, 0.5 now, seed=1 there, 2 now" in said
    assert "data.allow_reorder=true" in said
    said = finish(f"resume={folder}", "seed=2", "data.allow_reorder=true", "trainer.max_steps=6")
    assert "Going on from step" in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["trainer.devices=2", "trainer/strategy=fsdp"]], ids=["one", "two-sharded"])
def test_a_run_that_was_stopped_behind_its_last_step_still_validates_it(tmp_path, more):
    """Its last checkpoint is written as the step ends, so it holds no validation of it."""
    shape = [*RUN, "trainer.max_steps=5", "trainer.checkpoint_every_steps=5", *more]
    finish(*shape, f"hydra.run.dir={tmp_path}")
    whole = json.loads((tmp_path / "metrics.json").read_text())["train"]
    for name in ("metrics.json", "metrics.csv", "curves.png"):
        (tmp_path / name).unlink()
    before = load_file(tmp_path / "weights" / "visllama.safetensors")
    finish(f"resume={tmp_path}")
    resumed = json.loads((tmp_path / "metrics.json").read_text())["train"]
    assert resumed["val/loss"] == whole["val/loss"] and resumed["steps"] == 5
    after = load_file(tmp_path / "weights" / "visllama.safetensors")
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert (tmp_path / "curves.png").is_file() and len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved",
    ["trainer.val_check_interval=0.4", "trainer.checkpoint_every_steps=5", "trainer.val_check_interval=null"],
)
def test_a_finished_run_that_is_made_longer_logs_each_step_once(tmp_path, saved):
    """Whether its last step was saved at a validation, at its own end, or at the run's."""
    small = [*RUN, "data.num_val_records=4", "trainer.log_every_steps=1"]
    finish(*small, saved, "trainer.max_steps=5", f"hydra.run.dir={tmp_path}")
    finish(f"resume={tmp_path}", "trainer.max_steps=9")
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(9))
