"""Runs that are killed at random moments, and go on."""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from tests.scripts.survival.folders import check_folder, compare, count_consumed, has_begun, newest_step
from tests.scripts.survival.life import TINY, WIDTH, Bench, Life, override_dir
from tests.scripts.survival.report import Report

SAVING = ("save", "prune")


class Kill(NamedTuple):
    """A moment: `any` of a life's wall time, `save` inside one, or `end` after the last step."""

    kind: str
    where: float
    number: int


def draw_kills(count: int, seed: int | str) -> list[Kill]:
    """Draw moments: over a third inside a save, a few after the last step, the others over the whole wall time."""
    dice = random.Random(f"kill {seed}")
    in_save, at_end = -(-count * 7 // 20), max(1, count // 10)
    kinds = ["save"] * in_save + ["any"] * (count - in_save - at_end)
    dice.shuffle(kinds)
    return [Kill(kind, dice.random(), dice.randint(1, 4)) for kind in [*kinds, *["end"] * at_end]]


def shape_of(bench: Bench, stage: str, steps: int, ranks: int) -> list[str]:
    """Return the overrides of a run of a stage; the second begins with a first."""
    shape = [*TINY, "judge=false", f"stage={stage}", f"trainer.max_steps={steps}", "trainer.checkpoint_every_steps=2",
             "trainer.val_check_interval=0.25", f"trainer.devices={ranks}"]  # fmt: skip
    if stage == "pretrain":
        return [*shape, WIDTH, "data.num_workers=1"]
    first = bench.run("first")
    bench.finish(*TINY, WIDTH, "judge=false", "trainer.max_steps=10", override_dir(first))
    return [*shape, f"init_from={first / 'weights'}", "model.lora.lora_dropout=0.1"]


def kill(
    out: Path, stage: str = "pretrain", moments: int = 20, seed: int = 0, ranks: int = 1, steps: int | None = None
) -> Report:
    """Kill a run at random moments, go on by `resume=RUN` and nothing else, and compare with one that was let be."""
    steps = steps or (100 if moments >= 20 else 5 * moments)
    report = Report(f"kill -9, {stage}, {ranks} ranks, {steps} steps, {moments} moments, seed {seed}", out)
    with Bench(out, write=0.02) as bench:
        shape = shape_of(bench, stage, steps, ranks)
        whole = bench.run("whole")
        unkilled = bench.finish(*shape, override_dir(whole))
        took = _measure(unkilled)
        report.facts["uninterrupted"] = (
            f"{took.start_s:.1f} s to the first step, {took.total_s:.1f} s in all, a save {took.save_s:.2f} s"
        )
        pending = draw_kills(moments, f"{seed} {stage} {ranks}")
        run, num_runs = bench.run("killed"), 1
        while True:
            goes_on, begun_at = has_begun(run), newest_step(run)
            life = bench.start(f"resume={run}") if goes_on else bench.start(*shape, override_dir(run))
            if pending and _wait_for_moment(life, pending[0], took, steps - begun_at, moments):
                moment, at = pending.pop(0), time.time()
                life.kill()
                what = f"kill {moments - len(pending)}"
                report.expect(f"{what}: left behind", {}, life.left_behind(), life)
                check_folder(report, what, run, life)
                report.add(
                    kill=moments - len(pending), drawn=moment.kind, after_s=round(at - life.began, 2), inside=life.doing(),
                    begun_by="resume" if goes_on else "anew", run=num_runs, steps=count_consumed(run), saved=newest_step(run),
                )  # fmt: skip
                continue
            code = life.wait()  # no moment is left, or it has ended before the next
            good = report.expect("the last life's exit code", 0, code, life)
            report.expect("the end: left behind", {}, life.left_behind(), life)
            good = good and compare(report, f"run {num_runs}", whole, run, life)
            print(f"run {num_runs} has ended, {'as the uninterrupted one' if good else 'NOT as it should'}", flush=True)
            if not pending or not good:
                break
            run, num_runs = bench.run("killed"), num_runs + 1
    inside = sum(row["inside"] in SAVING for row in report.rows)
    report.facts |= {
        "runs compared": num_runs,
        "killed inside a save": inside,
        "begun anew": sum(r["begun_by"] == "anew" for r in report.rows),
    }
    report.expect("kills", moments, len(report.rows))
    report.expect("a quarter of the kills inside a save", True, 4 * inside >= moments)
    return report


class _Took(NamedTuple):
    """What an uninterrupted run took: to its first step, in all, for a save, and after its last step."""

    start_s: float
    total_s: float
    save_s: float
    end_s: float


def _measure(life: Life) -> _Took:
    ended, last_step = life.log.stat().st_mtime, life.events("step", "end", "0")[-1]["at"]
    save_s = statistics.median(life.seconds("save"))
    return _Took(life.first("step") - life.began, ended - life.began, save_s, ended - last_step)


def _wait_for_moment(life: Life, moment: Kill, took: _Took, steps_left: int, moments: int) -> bool:
    """Wait for a drawn moment; tells whether the program runs still.

    `any` is drawn over the whole wall time. Of each life's steps there is about an even share, so a moment among them
    is brought as near to the life's first one as makes room for all.
    """
    if moment.kind == "any":
        at_s = moment.where * took.total_s
        if at_s < took.start_s:
            return life.sleep(at_s)
        return life.wait_for("step") is not None and life.sleep((at_s - took.start_s) * 2 / moments)
    if moment.kind == "save":
        number = moment.number
        while True:  # until one is met: another process may keep ours from it
            if life.wait_for("save", count=number, rank="0") is None or not life.sleep(moment.where * took.save_s):
                return False
            if life.doing() in SAVING:
                return True
            number = len(life.events("save", "begin", "0")) + 1
    if steps_left:
        if life.wait_for("step", "end", steps_left, "0") is None:
            return False
    elif life.wait_for("read") is None:
        return False
    return life.sleep(moment.where * took.end_s)
