"""Programs that are started to be stopped: their processes, their logs, and what they tell of themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOOK = Path(__file__).with_name("hook")
"""Its `sitecustomize.py` is what Python imports first in each process of a program."""
TINY = (
    "trainer=cpu",
    "stage.global_batch_size=16",
    "data.log_consumed=true",
    "data.num_val_records=8",
    "trainer.log_every_steps=2",
)
WIDTH = "model.connector.hidden_dim=64"  # stage 2 takes the model of its weights
PATIENCE_S = 300
"""So long nothing that is waited for may take on a busy machine; then the log's end is shown."""
GONE_S = 2.0
"""So long after the end of what was started a process of it may live."""


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
            "PYTHONPATH": os.pathsep.join([str(HOOK), str(ROOT)]), "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
        }  # fmt: skip
        with open(self.log, "w") as log:
            log.write(f"{' '.join(command)}\n")
            log.flush()
            self.began = time.time()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=out, start_new_session=True
            )

    def events(self, name: str | None = None, state: str | None = None, rank: str | None = None) -> list[dict]:
        """Return what was told so far; a rank is "0" or "1", and "" is a process that is no rank (yet)."""
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
        """Return the processes of this life that live, whoever has started them, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if pid != os.getpid() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def left_behind(self, within_s: float = GONE_S) -> dict[int, str]:
        """Return the processes that live still, so long after the program's end."""
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
        """Return how long each of something took, on a rank."""
        began, found = [], []
        for event in self.events(name, rank=rank):
            if event["state"] == "begin":
                began.append(event["at"])
            elif began:
                found.append(event["at"] - began.pop())
        return found

    def first(self, name: str, state: str = "begin", rank: str = "0") -> float:
        """Return when something was first told."""
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
        for name in ("logs", "events", "runs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

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
        """Return a new folder for a run."""
        return self.out / "runs" / f"{name}-{uuid.uuid4().hex[:8]}"


def override_dir(run: Path) -> str:
    return f"hydra.run.dir={run}"
