"""A long run that is killed again and again: what that costs, and what grows."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.scripts.survival.folders import check_folder, compare, count_consumed, has_begun, newest_step
from tests.scripts.survival.life import TINY, WIDTH, Bench, Life, override_dir
from tests.scripts.survival.report import Report


def soak(
    out: Path, steps: int = 2000, kill_every: int = 200, seed: int = 0, every: int = 10, mtbf_s: float = 6 * 3600
) -> Report:
    """Train for long, once let be and once killed again and again; measure what that costs, and what grows."""
    report = Report(f"soak, {steps} steps, a kill every {kill_every}, a checkpoint every {every}, seed {seed}", out)
    dice = random.Random(f"soak {seed}")
    with Bench(out) as bench:
        shape = [*TINY, WIDTH, "judge=false", f"trainer.max_steps={steps}", f"trainer.checkpoint_every_steps={every}",
                 "trainer.val_check_interval=0.1"]  # fmt: skip
        whole, run = bench.run("whole"), bench.run("killed")
        unkilled = bench.start(*shape, override_dir(whole))
        samples = list(_sample(unkilled))
        report.expect("the uninterrupted run's exit code", 0, unkilled.wait(), unkilled)
        step_s = statistics.median(unkilled.seconds("step"))
        lives, goals = (
            [],
            [first + dice.randrange(min(kill_every, steps - first)) for first in range(0, steps, kill_every)],
        )
        offsets = [dice.random() for _ in goals]
        for goal, offset in zip(goals, offsets, strict=True):
            begun_at, life = newest_step(run), _next_life(bench, shape, run)
            lives.append(life)
            while begun_at + len(life.events("step", "end")) < goal and life.sleep(0.005):
                pass
            if not life.sleep(offset * step_s):
                break
            life.kill()
            check_folder(report, f"kill {len(lives)}", run, life)
            report.expect(f"kill {len(lives)}: left behind", {}, life.left_behind(), life)
            report.add(
                kill=len(lives),
                goal=goal,
                steps=count_consumed(run),
                saved=newest_step(run),
                inside=life.doing(),
                **_restart(life),
            )
        num_kills = len(report.rows)
        lives.append(_next_life(bench, shape, run))
        report.expect("the last life's exit code", 0, lives[-1].wait(), lives[-1])
        report.add(
            kill="end", goal="", steps=count_consumed(run), saved=newest_step(run), inside="", **_restart(lives[-1])
        )
        compare(report, "the killed run", whole, run, lives[-1])
    report.expect("kills", len(goals), num_kills)
    _report_costs(report, unkilled, lives, steps, every, mtbf_s)
    _report_growth(report, samples, steps)
    return report


def _next_life(bench: Bench, shape: Sequence[str], run: Path) -> Life:
    return bench.start(f"resume={run}") if has_begun(run) else bench.start(*shape, override_dir(run))


_PARTS = ("imports", "planning", "loading", "reading", "first step")


def _restart(life: Life) -> dict[str, object]:
    """Divide what lies between a program's start and the end of its first step."""
    names = [("plan", "begin"), ("plan", "end"), ("load", "end"), ("step", "begin"), ("step", "end")]
    found = [life.events(name, state) for name, state in names]
    if not all(found):
        return {}  # killed before
    times = [life.began, *(events[0]["at"] for events in found)]
    return {f"{part}_s": round(b - a, 2) for part, a, b in zip(_PARTS, times[:-1], times[1:], strict=True)}


def _report_costs(report: Report, unkilled: Life, lives: list[Life], steps: int, every: int, mtbf_s: float) -> None:
    computed = sum(len(life.events("step", "begin")) for life in lives)
    share = (computed - steps) / steps
    report.facts["recomputed steps"] = f"{computed - steps} of {steps}: {share:.2%}"
    report.at_most("recomputed steps, of all", 0.05, share)
    restarts = [row for row in map(_restart, lives[1:]) if row]
    means = {part: statistics.mean(row[f"{part}_s"] for row in restarts) for part in _PARTS}
    restart_s = sum(means[part] for part in _PARTS[:-1])
    told = ", ".join(f"{part} {seconds:.2f}" for part, seconds in means.items())
    report.facts["restart, mean of " + str(len(restarts))] = f"{restart_s:.2f} s to the first step ({told} s)"
    begun = [event["at"] for event in unkilled.events("step", "begin")]
    step_s = (begun[-1] - begun[0]) / (len(begun) - 1)
    save_s = statistics.mean(unkilled.seconds("save")) + statistics.mean(unkilled.seconds("prune"))
    report.facts["a step, with all that comes between"] = f"{step_s * 1000:.0f} ms; a save: {save_s * 1000:.0f} ms"
    report.facts["formula"] = (
        f"productive = 1 - (restart_s + interval_s/2 + save_s * {mtbf_s:.0f}/interval_s) / {mtbf_s:.0f}"
    )
    best_s = (2 * save_s * mtbf_s) ** 0.5  # where its derivative is zero
    for name, interval_s in (
        (f"every {every} steps, as here", every * step_s),
        ("every 10 minutes", 600.0),
        ("at the best interval", best_s),
    ):
        lost = restart_s + interval_s / 2 + save_s * mtbf_s / interval_s
        report.facts[f"productive, saved {name}"] = f"{1 - lost / mtbf_s:.4f} (interval {interval_s:.1f} s)"


def _sample(life: Life) -> Iterator[tuple[int, float, int]]:
    """Yield, twice a second, a process's steps, resident MiB, and open files."""
    folder = Path("/proc") / str(life.process.pid)
    while life.process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            line = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmRSS"))
            files = len(list((folder / "fd").iterdir()))
            yield len(life.events("step", "end")), int(line.split()[1]) / 1024, files
        time.sleep(0.5)


def _report_growth(report: Report, samples: list[tuple[int, float, int]], steps: int, warm_up: int = 200) -> None:
    warm = [sample for sample in samples if warm_up <= sample[0] < steps - 1]
    if steps < 600 + warm_up or len(warm) < 20:
        report.facts["memory"] = f"too few steps to tell (600 after {warm_up})"
        return
    slope = statistics.linear_regression([s[0] / 100 for s in warm], [s[1] for s in warm]).slope
    first, last = warm[0], warm[-1]
    report.facts["resident memory"] = (
        f"{slope:+.3f} MB a 100 steps by least squares over steps {first[0]} to {last[0]} ({first[1]:.1f} to {last[1]:.1f} MB)"
    )
    report.at_most("MB that resident memory grows by in 100 steps", 1, slope)
    quarter = len(warm) // 4
    usual = [statistics.mode(s[2] for s in warm[i * quarter : (i + 1) * quarter]) for i in range(4)]
    report.facts["open files"] = (
        f"{usual} (most often, by quarters); {min(s[2] for s in warm)} to {max(s[2] for s in warm)}"
    )
    report.expect("open files by quarters", [usual[0]] * 4, usual)
