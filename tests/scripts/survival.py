"""Runs that are killed, told to leave, or left alone for long: what is promised of them, shown with real processes.

python tests/scripts/survival.py kill [--stage finetune] [--ranks 2]   kill -9 at random moments, then resume=RUN, to the end
python tests/scripts/survival.py term                                  SIGTERM and SIGUSR1 to a rank, to all, to who started them
python tests/scripts/survival.py soak                                  2,000 steps with a kill every 200; memory, open files

Each prints a table, leaves logs and result.json in its folder, and ends with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from visllama.checkpoint.folder import checkpoints, find_damage
from visllama.training.callbacks.consumed import read_consumed

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "trainer=cpu",
    "stage.global_batch_size=16",
    "data.log_consumed=true",
    "data.num_val_records=8",
    "trainer.log_every_steps=2",
)
WIDTH = "model.connector.hidden_dim=64"  # stage 2 takes the model of its weights
SMALL_JUDGE = "evaluation.scenes_caption.source.num_records=20"
PATIENCE_S = 300
"""So long nothing that is waited for may take on a busy machine; then the log's end is shown."""
GONE_S = 2.0
"""So long after the end of what was started a process of it may live."""
SAVING = ("save", "prune")
HEEDED = "listen"
"""The event after which Python heeds signals; before it, a signal ends a process as the system does."""

HOOK = '''
"""Tell what this process does, to a file, and do some of it slowly; put here by tests/scripts/survival.py."""
import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import time

TOLD = os.environ["SURVIVAL_EVENTS"]
SLOW = json.loads(os.environ["SURVIVAL_SLOW"])
PATCHES = {
    "visllama.machine.preemption": [("listen", "listen")],
    "visllama.training.verb": [("assemble", "plan"), ("train", "work")],
    "visllama.model.visllama": [("VisLlama.load_base_weights", "load")],
    "visllama.checkpoint.folder": [("write_checkpoint", "save"), ("keep_newest", "prune")],
    "visllama.checkpoint.state": [("read_tensors", "read")],
    "visllama.training.module": [("VisLlamaModule.training_step", "step"), ("VisLlamaModule.validation_step", "validate")],
    "visllama.model.weights": [("save_weights", "weights")],
    "visllama.evaluation.runner": [("judge", "judge")],
    "lightning.fabric.utilities.distributed": [("_init_dist_connection", "group")],
    "subprocess": [("Popen._handle_exitstatus", None)],
}
saving = 0
is_telling = False


def tell(name, state, **more):
    global is_telling
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or ""
    line = {"name": name, "state": state, "pid": os.getpid(), "rank": rank, "at": time.time(), **more}
    is_telling = True
    try:
        file = os.open(TOLD, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (json.dumps(line) + "\\n").encode())
        os.close(file)
    finally:
        is_telling = False


def told(inner, name):
    @functools.wraps(inner)
    def outer(*args, **kwargs):
        global saving
        tell(name, "begin")
        time.sleep(SLOW.get(name, 0))
        saving += name in ("save", "prune")
        try:
            return inner(*args, **kwargs)
        finally:
            saving -= name in ("save", "prune")
            tell(name, "end")

    return outer


def with_code(inner):
    @functools.wraps(inner)
    def outer(self, *args, **kwargs):
        inner(self, *args, **kwargs)
        tell("exit", "end", child=self.pid, code=self.returncode)

    return outer


def patch(module):
    for path, name in PATCHES[module.__name__]:
        *holders, last = path.split(".")
        holder = functools.reduce(getattr, holders, module)
        inner = getattr(holder, last)
        setattr(holder, last, told(inner, name) if name else with_code(inner))


class Finder(importlib.abc.MetaPathFinder):
    busy = set()

    def find_spec(self, name, path, target=None):
        if name not in PATCHES or name in self.busy:
            return None
        self.busy.add(name)
        spec = importlib.util.find_spec(name)
        inner = spec.loader.exec_module

        def exec_module(module):
            inner(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


def slow_write():
    if saving and not is_telling:
        time.sleep(SLOW.get("write", 0))


def audit(event, args):
    """Every opening for writing, renaming and removing within a save takes time: a kill finds each half-done."""
    if not saving or is_telling:
        return
    if event == "open":
        if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            slow_write()
    elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        slow_write()


def fsync(file, inner=os.fsync):
    slow_write()
    inner(file)
    slow_write()


os.fsync = fsync
sys.addaudithook(audit)
sys.meta_path.insert(0, Finder())
if "subprocess" in sys.modules:
    patch(sys.modules["subprocess"])
tell("python", "begin", argv=sys.orig_argv[1:9])
'''


class Stuck(Exception):
    """Something that was waited for did not come."""


class Life:
    """One start of a program: its processes, what they tell by the hook, and their log."""

    def __init__(self, command: Sequence[str], out: Path, number: int, slow: dict) -> None:
        self.mark = f"SURVIVAL_LIFE={uuid.uuid4().hex}"
        self.log, self.told = out / "logs" / f"{number:03d}.log", out / "events" / f"{number:03d}.jsonl"
        self.command, self._read, self._events = list(command), 0, []
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_", "PYTEST_"))}
        key, value = self.mark.split("=")
        environment = inherited | {
            key: value, "SURVIVAL_EVENTS": str(self.told), "SURVIVAL_SLOW": json.dumps(slow), "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(out / "hook"), str(ROOT)]), "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
        }  # fmt: skip
        with open(self.log, "w") as log:
            log.write(f"{' '.join(command)}\n")
            log.flush()
            self.began = time.time()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=out, start_new_session=True
            )

    def events(self, name: str | None = None, state: str | None = None, rank: str | None = None) -> list[dict]:
        """Give what was told so far; a rank is "0" or "1", and "" is a process that is no rank (yet)."""
        with contextlib.suppress(FileNotFoundError), open(self.told, "rb") as file:
            file.seek(self._read)
            *lines, _ = file.read().split(b"\n")
            self._read += sum(len(line) + 1 for line in lines)
            self._events += map(json.loads, lines)
        found = (e for e in self._events if name in (None, e["name"]) and state in (None, e["state"]))
        return [e for e in found if rank is None or (e["rank"] or "0") == rank]

    def wait_for(self, name: str, state: str = "begin", count: int = 1, rank: str | None = None) -> dict | None:
        """Wait until something was told so often; gives it, or None if the program has ended before."""
        until = time.monotonic() + PATIENCE_S
        while True:
            ended = self.process.poll() is not None
            found = self.events(name, state, rank)
            if len(found) >= count:
                return found[count - 1]
            if ended:
                return None
            if time.monotonic() > until:
                raise Stuck(f"no {name} ({state}) number {count} of rank {rank} in {PATIENCE_S} s:\n{self.tail()}")
            time.sleep(0.005)

    def sleep(self, seconds: float) -> bool:
        """Sleep, and tell whether the program still runs."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(min(0.01, max(0.0, until - time.monotonic())))
        return self.process.poll() is None

    def wait(self, timeout_s: float = 2 * PATIENCE_S) -> int:
        """Wait for the program's end, and give its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Stuck(f"not ended in {timeout_s} s:\n{self.tail()}") from None

    def living(self) -> dict[int, str]:
        """Give the processes of this life that live, whoever has started them, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if pid != os.getpid() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def left_behind(self, within_s: float = GONE_S) -> dict[int, str]:
        """Give the processes that live still, so long after the program's end."""
        until = time.monotonic() + within_s
        while (found := self.living()) and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def kill(self) -> None:
        """Kill all its processes at once, as a machine that goes down would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End what is left of it, by its marks, whatever has happened."""
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def doing(self, rank: str | None = "0") -> str:
        """Name what a rank is in the middle of."""
        running: list[str] = []
        for event in self.events(rank=rank):
            if event["state"] == "begin":
                running.append(event["name"])
            elif event["name"] in running:
                running.remove(event["name"])
        if "work" in running:
            return running[-1]
        return "leaving" if self.events("work", "end", rank) else "imports"

    def seconds(self, name: str, rank: str = "0") -> list[float]:
        """Give how long each of something took, on a rank."""
        began, found = [], []
        for event in self.events(name, rank=rank):
            if event["state"] == "begin":
                began.append(event["at"])
            elif began:
                found.append(event["at"] - began.pop())
        return found

    def first(self, name: str, state: str = "begin", rank: str = "0") -> float:
        """Give when something was first told."""
        found = self.events(name, state, rank)
        if not found:
            raise Stuck(f"it never told of {name}:\n{self.tail()}")
        return found[0]["at"]

    def tail(self, count: int = 3000) -> str:
        text = self.log.read_text(errors="replace").replace("\r", "\n")
        return f"--- the end of {self.log}\n{text[-count:]}\n---"


class Bench:
    """Where a proof's programs run: a folder with their logs, and the hook that they all load."""

    def __init__(self, out: Path, **slow: float) -> None:
        self.out, self.slow, self.lives = out.resolve(), slow, []
        for name in ("hook", "logs", "events", "runs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        (self.out / "hook" / "sitecustomize.py").write_text(HOOK)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_) -> None:
        for life in self.lives:
            life.end()

    def start(self, *overrides: str, torchrun: bool = False) -> Life:
        """Start `train.py`."""
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2") if torchrun else ()
        command = [sys.executable, *launcher, str(ROOT / "train.py"), *overrides]
        self.lives.append(Life(command, self.out, len(self.lives), self.slow))
        return self.lives[-1]

    def finish(self, *overrides: str, torchrun: bool = False) -> Life:
        """Run `train.py` to its end."""
        life = self.start(*overrides, torchrun=torchrun)
        if code := life.wait():
            raise Stuck(f"it ended with {code}:\n{life.tail()}")
        return life

    def run(self, name: str) -> Path:
        """Give a new folder for a run."""
        return self.out / "runs" / f"{name}-{uuid.uuid4().hex[:8]}"


class Report:
    """A table's rows, what was found beside them, and the promises that were broken."""

    def __init__(self, title: str, out: Path) -> None:
        self.title, self.out = title, out
        self.rows: list[dict] = []
        self.facts: dict[str, object] = {}
        self.broken: list[str] = []

    def expect(self, what: str, expected: object, found: object, life: Life | None = None) -> bool:
        """Note a broken promise unless what was found is what was expected."""
        return self._keep(expected == found, f"{what}: expected {expected!r}, found {found!r}", life)

    def at_most(self, what: str, most: float, found: float, life: Life | None = None) -> bool:
        """Note a broken promise if more was found."""
        return self._keep(found <= most, f"{what}: expected at most {most:.4g}, found {found:.4g}", life)

    def _keep(self, is_kept: bool, told: str, life: Life | None) -> bool:
        if is_kept:
            return True
        told += f" ({life.log})" if life else ""
        self.broken.append(told)
        print(f"BROKEN  {told}", flush=True)
        return False

    def add(self, **row: object) -> None:
        self.rows.append(row)
        print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)

    def show(self) -> int:
        """Print it all and write result.json; gives the exit code."""
        lines = [f"\n== {self.title} =="]
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [names, *([str(row.get(name, "")) for name in names] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"{len(self.broken)} promises broken" if self.broken else "every promise kept", *self.broken]
        print("\n".join(lines), flush=True)
        written = {"title": self.title, "rows": self.rows, "facts": self.facts, "broken": self.broken}
        (self.out / "result.json").write_text(json.dumps(written, indent=1, default=str))
        return int(bool(self.broken))


def differing(one: Sequence[Path], other: Sequence[Path]) -> list[str]:
    """Name the tensors of some safetensors files, and others, that are not the same to the bit."""
    a, b = (
        {name: _bits(tensor) for path in paths for name, tensor in load_file(path).items()} for paths in (one, other)
    )
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def logged_losses(run: Path) -> dict[tuple[int, str], str]:
    """Give the losses that metrics.csv holds, by step and name; of a step that stands there twice the last."""
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["step"]), name): value for row in rows for name, value in row.items() if "/loss" in name and value}


def compare(report: Report, what: str, whole: Path, run: Path, life: Life) -> bool:
    """Look whether a run that was stopped has come to the same as one that was not."""
    if not (run / "weights" / "visllama.safetensors").is_file():
        return report.expect(f"{what}: weights/", "there", "missing", life)
    expected, found = (read_consumed(folder / "consumed.jsonl") for folder in (whole, run))
    wrong = sorted(step for step in expected.keys() | found.keys() if expected.get(step) != found.get(step))
    good = report.expect(f"{what}: steps whose keys differ", [], wrong, life)
    weights = "weights/visllama.safetensors"
    good &= report.expect(
        f"{what}: trained tensors that differ", [], differing([whole / weights], [run / weights]), life
    )
    newest = [max(checkpoints(folder)) for folder in (whole, run)]
    good &= report.expect(f"{what}: last checkpoint", newest[0].step, newest[1].step, life)
    shards = (sorted(checkpoint.path.glob("*.safetensors")) for checkpoint in newest)  # with the optimizer's state
    good &= report.expect(f"{what}: tensors of the last checkpoint that differ", [], differing(*shards), life)
    logged, again = (logged_losses(folder) for folder in (whole, run))
    wrong = sorted(key for key in logged.keys() & again.keys() if logged[key] != again[key])
    good &= report.expect(f"{what}: losses of metrics.csv that differ", [], wrong, life)
    if missing := sorted(logged.keys() - again.keys()):  # of the step at which it was stopped
        report.facts.setdefault("losses that metrics.csv lacks after it", {})[what] = missing
    hidden = [p.name for p in (run / "checkpoints").glob(".step_*")]
    return good & report.expect(f"{what}: half-written folders left", [], hidden, life)


def check_folder(report: Report, what: str, run: Path, life: Life) -> None:
    """Look whether all that lies under its proper name is whole."""
    damage = {c.path.name: found for c in checkpoints(run) if (found := find_damage(c.path)) is not None}
    report.expect(f"{what}: damaged checkpoints", {}, damage, life)
    for name in ("weights/visllama.json", "metrics.json"):
        if (run / name).is_file():
            with contextlib.suppress(ValueError):
                json.loads((run / name).read_text())
                continue
            report.expect(f"{what}: {name}", "whole", "no JSON", life)
    if (run / "weights/visllama.safetensors").is_file():
        try:
            with safe_open(run / "weights/visllama.safetensors", framework="pt") as file:
                file.keys()
        except Exception as error:
            report.expect(f"{what}: weights/visllama.safetensors", "whole", str(error), life)


def has_begun(run: Path) -> bool:
    """Tell whether there is a run to go on with: its command line was written down, by us or by Hydra."""
    return (run / "command.yaml").is_file() or (run / ".hydra" / "overrides.yaml").is_file()


def count_consumed(run: Path) -> int:
    path = run / "consumed.jsonl"
    return max(read_consumed(path), default=-1) + 1 if path.is_file() else 0


def newest_step(run: Path) -> int:
    return max((c.step for c in checkpoints(run)), default=0)


def spread(values: Sequence[float]) -> str:
    """Tell a distribution."""
    if not values:
        return "none"
    ordered = sorted(values)
    ninth = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
    return f"median {statistics.median(ordered):.2f}, 90% {ninth:.2f}, most {ordered[-1]:.2f} s (of {len(ordered)})"


# --- kill -9 -----------------------------------------------------------------------------------------------------


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
    """Give the overrides of a run of a stage; the second begins with a first."""
    shape = [*TINY, "judge=false", f"stage={stage}", f"trainer.max_steps={steps}", "trainer.checkpoint_every_steps=2",
             "trainer.val_fraction=0.25", f"trainer.devices={ranks}"]  # fmt: skip
    if stage == "pretrain":
        return [*shape, WIDTH, "data.num_workers=1"]
    first = bench.run("first")
    bench.finish(*TINY, WIDTH, "judge=false", "trainer.max_steps=10", override_dir(first))
    return [*shape, f"init_from={first / 'weights'}", "model.lora.lora_dropout=0.1"]


def override_dir(run: Path) -> str:
    return f"hydra.run.dir={run}"


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


# --- SIGTERM and SIGUSR1 -----------------------------------------------------------------------------------------


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
            "trainer.val_fraction=0.25",
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
    """Give after how many seconds the last rank was gone, and who had started them, and what has outlived both by 2 s."""
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
    """Tell whether a Python process is a rank, or who has started them; other programs start Python too."""
    return any(word.endswith("train.py") or word in ("visllama", "torch.distributed.run") for word in event["argv"])


# --- soak --------------------------------------------------------------------------------------------------------


def soak(
    out: Path, steps: int = 2000, kill_every: int = 200, seed: int = 0, every: int = 10, mtbf_s: float = 6 * 3600
) -> Report:
    """Train for long, once let be and once killed again and again; measure what that costs, and what grows."""
    report = Report(f"soak, {steps} steps, a kill every {kill_every}, a checkpoint every {every}, seed {seed}", out)
    dice = random.Random(f"soak {seed}")
    with Bench(out) as bench:
        shape = [*TINY, WIDTH, "judge=false", f"trainer.max_steps={steps}", f"trainer.checkpoint_every_steps={every}",
                 "trainer.val_fraction=0.1"]  # fmt: skip
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "term", "soak"))
    parser.add_argument("--stage", choices=("pretrain", "finetune"), default="pretrain", help="of kill")
    parser.add_argument("--ranks", type=int, default=1, help="of kill")
    parser.add_argument("--moments", type=int, default=20, help="of kill and term")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--kill-every", type=int, default=200, help="of soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for logs and runs; else one is made")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix=f"survival-{given.what}-"))
    print(f"runs and logs: {out}", flush=True)
    more = {"steps": given.steps} if given.steps else {}
    if given.what == "kill":
        report = kill(out, given.stage, given.moments, given.seed, given.ranks, **more)
    elif given.what == "term":
        report = term(out, given.moments, given.seed, **more)
    else:
        report = soak(out, kill_every=given.kill_every, seed=given.seed, **more)
    return report.show()


if __name__ == "__main__":
    sys.exit(main())
