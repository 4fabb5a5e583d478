"""Runs that are told to leave by SIGTERM or SIGUSR1: to a rank, to all, to who started them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.scripts.survival.folders import check_folder, compare, count_consumed, has_begun, newest_step
from tests.scripts.survival.life import GONE_S, PATIENCE_S, TINY, WIDTH, Bench, Life, Stuck, override_dir
from tests.scripts.survival.report import Report, spread

SMALL_JUDGE = "evaluation.scenes_caption.source.num_records=20"
HEEDED = "listen"
"""The event after which Python heeds signals; before it, a signal ends a process as the system does."""


class Target(NamedTuple):
    """Who is told, and how the ranks were started."""

    name: str
    torchrun: bool
    rank: str | None  # None: who started the ranks
    is_group: bool = False


TARGETS = {
    target.name: target
    for target in (
        Target("parent", False, "0"),
        Target("rank 1", False, "1"),
        Target("group", False, "0", True),  # with data.num_workers=2
        Target("torchrun", True, None),
        Target("torchrun rank 0", True, "0"),
        Target("torchrun rank 1", True, "1"),
    )
}
PHASES = ("imports", "group", "load", "first step", "validate", "save", "judge", "any")
WITHIN = {
    "group": "group",
    "load": "load",
    "first step": "step",
    "validate": "validate",
    "save": "save",
    "judge": "judge",
}


class Term(NamedTuple):
    """A moment: who is told what, in the middle of what."""

    target: Target
    phase: str
    number: signal.Signals
    where: float
    which: int


def draw_terms(count: int, seed: int, targets: Sequence[str], phases: Sequence[str] = PHASES) -> list[Term]:
    """Draw moments so that each target, and each phase, comes as often as any other."""
    dice = random.Random(f"term {seed}")
    pairs = [(target, phase) for target in targets for phase in phases]
    dice.shuffle(pairs)
    used: dict[str, int] = dict.fromkeys([*targets, *phases], 0)
    terms = []
    for i in range(count):
        target, phase = pairs.pop(min(range(len(pairs)), key=lambda j: used[pairs[j][0]] + used[pairs[j][1]]))
        used[target] += 1
        used[phase] += 1
        pairs = pairs or [(target, phase) for target in targets for phase in phases]
        # The agent of torchrun heeds SIGTERM alone, and until Python heeds it SIGUSR1 is not ours.
        is_usr1 = i % 4 == 3 and target != "torchrun" and phase not in ("imports", "any")
        number = signal.SIGUSR1 if is_usr1 else signal.SIGTERM
        terms.append(Term(TARGETS[target], phase, number, dice.random(), dice.randint(1, 3)))
    return terms


def term(
    out: Path, moments: int = 20, seed: int = 0, targets: Sequence[str] = tuple(TARGETS), steps: int = 16,
    phases: Sequence[str] = PHASES, resumes: Callable[[int], bool] = lambda _: True, slack_s: float = 5.0,
) -> Report:  # fmt: skip
    """Tell ranks to leave at random moments, watch them go, and compare what `resume=` makes of it.

    Args:
        resumes: Which moments' runs are gone on with to their end.
        slack_s: What Python, Lightning and the launcher may take to end, beyond a step and a save.
    """
    report = Report(f"SIGTERM and SIGUSR1, 2 ranks, {steps} steps, {moments} moments, seed {seed}", out)
    slow = {"write": 0.01, "load": 0.4, "group": 0.3, "step": 0.05, "validate": 0.2}
    with Bench(out, **slow) as bench:
        shape = [
            *TINY,
            WIDTH,
            f"trainer.max_steps={steps}",
            "trainer.checkpoint_every_steps=2",
            "trainer.val_check_interval=0.25",
        ]
        whole = bench.run("whole")
        judged = any(of.phase in ("judge", "any") for of in draw_terms(moments, seed, targets, phases))
        judge = [SMALL_JUDGE] if judged else ["judge=false"]
        unstopped = bench.finish(*shape, *judge, "trainer.devices=2", override_dir(whole))
        length = {
            (phase, rank): max(unstopped.seconds(name, rank))
            for phase, name in WITHIN.items() for rank in ("0", "1") if unstopped.seconds(name, rank)
        }  # fmt: skip
        for rank in ("0", "1"):
            length["imports", rank] = unstopped.first("load", rank="1") - unstopped.first("python", rank="1")
            length["any", rank] = unstopped.events("work", "end", rank)[-1]["at"] - unstopped.first("python", rank=rank)
        bound = max(unstopped.seconds("step")) + max(unstopped.seconds("save"))
        report.facts["uninterrupted"] = ", ".join(
            f"{phase} {seconds:.2f} s" for (phase, rank), seconds in length.items() if rank == "0"
        )
        for i, moment in enumerate(draw_terms(moments, seed, targets, phases)):
            own = [SMALL_JUDGE] if moment.phase in ("judge", "any") else ["judge=false"]
            own += [] if moment.target.torchrun else ["trainer.devices=2"]
            own += ["data.num_workers=2"] if moment.target.is_group else []
            for attempt in range(4):  # on a busy machine it may have ended before its moment
                run = bench.run(f"told{i}")
                life = bench.start(*shape, *own, override_dir(run), torchrun=moment.target.torchrun)
                earlier = moment._replace(where=moment.where / 2**attempt)
                row = _tell(report, f"moment {i + 1}", life, earlier, run, length, bound + slack_s)
                if row is not None:
                    break
                life.end()
            if not report.expect(f"moment {i + 1}: is met", True, row is not None, life):
                continue
            row = {"moment": i + 1, **row}
            if has_begun(run) and resumes(i):
                life = _go_on(bench, report, f"moment {i + 1}", run, moment.target.torchrun)
                row["resumed"] = bool(life) and compare(report, f"moment {i + 1}", whole, run, life)
            else:
                row["resumed"] = "not tried" if has_begun(run) else "nothing there"
            report.add(**row)
    rows = report.rows
    report.facts |= {
        "one step + one save": f"{bound:.2f} s (both made slow)",
        "signal to the last rank's end": spread([row["gone_s"] for row in rows]),
        "of these while training": spread(
            [row["gone_s"] for row in rows if row["inside"] in ("step", "save", "validate")]
        ),
        "signal to the launcher's end (torchrun)": spread(
            [row["all_s"] for row in rows if row["to"].startswith("torchrun")]
        ),
    }
    return report


def _go_on(bench: Bench, report: Report, what: str, run: Path, torchrun: bool) -> Life | None:
    """Go on with a run to its end, by `resume=RUN` alone."""
    life = bench.start(f"resume={run}", torchrun=torchrun)
    code = life.wait()
    good = report.expect(f"{what}: exit code of resume=RUN", 0, code, life)
    report.expect(f"{what}: left behind by resume=RUN", {}, life.left_behind(), life)
    return life if good else None


def _tell(
    report: Report, what: str, life: Life, moment: Term, run: Path, length: dict[tuple[str, str], float], limit_s: float
) -> dict | None:  # fmt: skip
    """Wait for a moment, send its signal, and look at what comes of it; None if who is to be told had ended before."""
    target, phase = moment.target, moment.phase
    pid = life.process.pid
    if target.rank is not None and (target.torchrun or target.rank == "1"):
        started = life.wait_for("python", rank=target.rank) if not target.torchrun else _rank_started(life, target.rank)
        if started is None:
            return None
        pid = started["pid"]
    if phase in WITHIN:
        count = 1 if phase in ("first step", "group", "load", "judge") else moment.which
        if life.wait_for(WITHIN[phase], count=count, rank=target.rank or "0") is None:
            raise Stuck(f"{what}: it ended, and told of no {WITHIN[phase]}:\n{life.tail()}")
    if not life.sleep(moment.where * length[phase, target.rank or "0"]) or pid not in life.living():
        return None
    heeding = {event["pid"] for event in life.events(HEEDED, "end")}
    inside, before, pids = life.doing(target.rank or "0"), count_consumed(run), set(life.living())
    at = time.time()
    try:
        os.killpg(pid, moment.number) if target.is_group else os.kill(pid, moment.number)
    except ProcessLookupError:
        return None
    gone_s, all_s, behind = _watch_going(life, at)
    report.expect(f"{what}: left behind {GONE_S:g} s later", {}, behind, life)
    with contextlib.suppress(subprocess.TimeoutExpired):
        life.process.wait(1)
    code = life.process.poll()
    life.end()
    codes = {e["pid"]: e for e in life.events("python") if _is_ours(e)}
    ranks = {
        pid: e["rank"] or ("" if target.torchrun else "0") for pid, e in codes.items() if pid in pids or e["at"] > at
    }
    ended = {e["child"]: e["code"] for e in life.events("exit") if e["child"] in codes and e["code"] is not None}
    if not target.torchrun:
        ended[life.process.pid] = code
    shown = []
    for one, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if rank == "" or one not in ended:
            continue  # the agent's code is its own affair; and of a rank that outlives its parent nobody learns it
        good = {143} if one in heeding else {143, -moment.number, -signal.SIGTERM}
        shown.append(f"{rank}:{ended[one]}")
        if ended[one] not in good:
            report.expect(f"{what}: exit code of rank {rank}", sorted(good), ended[one], life)
    report.at_most(f"{what}: seconds until the ranks are gone", limit_s, gone_s, life)
    check_folder(report, what, run, life)
    consumed, saved = count_consumed(run), newest_step(run)
    report.expect(f"{what}: steps that were taken and are not saved", 0, consumed - saved, life)
    report.at_most(f"{what}: steps taken after it was told", 2, consumed - before, life)
    return {
        "to": target.name, "signal": moment.number.name, "drawn": phase, "after_s": round(at - life.began, 1), "inside": inside,
        "gone_s": round(gone_s, 2), "all_s": round(all_s, 2), "codes": " ".join(shown), "steps": f"{before}+{consumed - before}",
        "saved": saved,
    }  # fmt: skip


def _rank_started(life: Life, rank: str) -> dict | None:
    """Wait for a rank that torchrun has started: the first process that has its number."""
    until = time.monotonic() + PATIENCE_S
    while life.sleep(0.01):
        found = [e for e in life.events("python") if e["rank"] == rank]
        if found:
            return found[0]
        if time.monotonic() > until:
            raise Stuck(f"torchrun has started no rank {rank} in {PATIENCE_S} s:\n{life.tail()}")
    return None


def _watch_going(life: Life, at: float) -> tuple[float, float, dict[int, str]]:
    """Return after how many seconds the last rank was gone, and who had started them, and what has outlived both by 2 s."""
    ranks_s = all_s = None
    while True:
        life.process.poll()
        living, now = life.living(), time.time() - at
        started = {e["pid"]: "torch.distributed.run" in e["argv"] for e in life.events("python") if _is_ours(e)}
        if ranks_s is None and not any(pid in living and not is_agent for pid, is_agent in started.items()):
            ranks_s = now
        if all_s is None and not living.keys() & started.keys():
            all_s = now
        if not living or (all_s is not None and now > all_s + GONE_S) or now > 120:
            return ranks_s or now, all_s or now, living
        time.sleep(0.02)


def _is_ours(event: dict) -> bool:
    """Return whether a Python process is a rank, or who has started them; other programs start Python too."""
    return any(word.endswith("train.py") or word in ("visllama", "torch.distributed.run") for word in event["argv"])
