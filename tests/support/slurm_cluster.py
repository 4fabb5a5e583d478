"""Stand-ins for SLURM's programs on this machine: `with Slurm(folder) as slurm: slurm.call("sbatch", "job.sh")`.

What they do is taken from SLURM's manual pages, as far as visllama and submitit rest on it: `sbatch` (arrays, --wait,
--requeue, options in the script), `srun` (ranks and their variables, signals to all of them, --kill-on-bad-exit),
`scontrol requeue`, `scancel --signal` and `sacct`. Jobs run one after the other, and every node is 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "scancel", "sacct")
FLAGS = ("--requeue", "--wait", "--unbuffered", "--kill-on-bad-exit", "--label")
"""Options that may have no value."""
SHORT = {"-n": "ntasks", "-N": "nodes", "-o": "output", "-J": "job-name"}
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


class Slurm:
    """A cluster: its programs come first on the PATH of `environment`, and its folder keeps what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in PROGRAMS:
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", __file__, name])} "$@"\n')
            program.chmod(0o755)
        outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        # As a node gives a task of one CPU no more threads than that.
        self.environment = outer | {"PATH": path, "SLURM_STAND_IN": str(folder), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_) -> None:
        for file in self.folder.glob("*.runner"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(file.read_text()), signal.SIGKILL)

    def call(self, *command: str, timeout: float = 300, **more) -> subprocess.CompletedProcess:
        """Run a program where SLURM's are at hand."""
        made = {"capture_output": True, "text": True, "env": self.environment, "timeout": timeout}
        return subprocess.run(command, **(made | more))

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of each call of a program."""
        lines = (self.folder / "calls.txt").read_text().splitlines() if (self.folder / "calls.txt").exists() else []
        return [arguments for name, *arguments in map(json.loads, lines) if name == program]


def free_job_id() -> int:
    """Return a job number whose last four digits name a free port, as Lightning takes it: 15000 and these."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        candidate = port % 10000
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", 15000 + candidate))
            except OSError:
                continue
        return 4270000 + candidate


def parse(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Divide a command line into options and what comes behind them."""
    options, words = {}, list(words)
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).partition("=")
        if not equals and name not in FLAGS:
            value = words.pop(0)
        options[SHORT.get(name, name.lstrip("-"))] = value
    return options, words


def state_folder() -> Path:
    return Path(os.environ["SLURM_STAND_IN"])


def tell(job: str, state: str) -> None:
    (state_folder() / f"{job}.state").write_text(state)


def sbatch(arguments: list[str]) -> int:
    """Queue a script; options of the command line win over those in the script."""
    typed, (script, *rest) = parse(arguments)
    lines = re.findall(r"^#SBATCH +(.*?)(?: +#.*)?$", Path(script).read_text(), re.MULTILINE)
    options = parse([word for line in lines for word in shlex.split(line)])[0] | typed
    first = free_job_id()
    spooled = state_folder() / f"{first}.sh"
    spooled.write_text(Path(script).read_text())
    jobs = {str(first): {}}
    if "array" in options:
        low, high = map(int, re.match(r"(\d+)-(\d+)", options["array"]).groups())
        elements = range(low, high + 1)  # as in SLURM, one of them has the array's own number
        ids = [*(first + 1 + i for i in range(len(elements) - 1)), first]
        variables = {"SLURM_ARRAY_JOB_ID": str(first), "SLURM_ARRAY_TASK_COUNT": str(len(elements))}
        jobs = {
            str(id): variables | {"SLURM_ARRAY_TASK_ID": str(i)} for id, i in zip(ids, elements, strict=True)
        }  # fmt: skip
    spec = {"jobs": jobs, "options": options, "script": [str(spooled), *rest], "name": Path(script).name}
    (state_folder() / f"{first}.json").write_text(json.dumps(spec))
    for job in jobs:
        tell(job, "PENDING")
    command = [sys.executable, "-S", __file__, "work_off", str(first)]
    worker = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (state_folder() / f"{first}.runner").write_text(str(worker.pid))
    print(f"Submitted batch job {first}", flush=True)
    return worker.wait() if "wait" in options else 0


def work_off(arguments: list[str]) -> int:
    """Run the jobs of one `sbatch`; gives their highest exit code."""
    (first,) = arguments
    spec = json.loads((state_folder() / f"{first}.json").read_text())
    options, codes = spec["options"], []
    nodes, per_node = int(options.get("nodes", 1)), int(options.get("ntasks-per-node", 1))
    for job, variables in spec["jobs"].items():
        variables = {
            **os.environ, **variables,
            "SLURM_JOB_ID": job, "SLURM_JOBID": job, "SLURM_JOB_NAME": options.get("job-name", spec["name"]),
            "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_NTASKS_PER_NODE": str(per_node), "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1",
        }  # fmt: skip
        output = options.get("output", "slurm-%j.out")
        for pattern, name in (("j", "JOB_ID"), ("x", "JOB_NAME"), ("A", "ARRAY_JOB_ID"), ("a", "ARRAY_TASK_ID")):
            output = output.replace(f"%{pattern}", variables.get(f"SLURM_{name}", ""))
        for attempt in range(100):
            tell(job, "RUNNING")
            restarted = {"SLURM_RESTART_COUNT": str(attempt)} if attempt else {}
            with open(output, "a" if options.get("open-mode") == "append" else "w") as file:
                code = subprocess.run(
                    ["bash", *spec["script"]], env=variables | restarted, stdout=file, stderr=file
                ).returncode
            flag = state_folder() / f"{job}.requeue"
            if not flag.exists():
                break
            flag.unlink()
            tell(job, "PENDING")
        (state_folder() / f"{job}.code").write_text(str(code))
        tell(job, "FAILED" if code else "COMPLETED")
        codes.append(code)
    return max(codes)


def srun(arguments: list[str]) -> int:
    """Start the ranks of a step and hand signals on; gives their highest exit code."""
    options, command = parse(arguments)
    nodes = int(options.get("nodes", os.environ.get("SLURM_NNODES", 1)))
    num_tasks = int(options.get("ntasks", os.environ.get("SLURM_NTASKS", nodes)))
    per_node = num_tasks // nodes
    job = os.environ.get("SLURM_JOB_ID") or str(free_job_id())
    shared = {
        "SLURM_JOB_ID": job, "SLURM_JOB_NAME": os.environ.get("SLURM_JOB_NAME", command[0]), "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(num_tasks), "SLURM_NPROCS": str(num_tasks), "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_NNODES": str(nodes), "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_NODELIST": "127.0.0.1",
    }  # fmt: skip
    tasks: list[subprocess.Popen] = []

    def hand_on(number: int, _=None) -> None:
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, hand_on)
    array = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for rank in range(num_tasks):
        streams = {}
        for option, stream in (("output", "stdout"), ("error", "stderr")):
            if option in options:
                path = options[option].replace("%j", job).replace("%t", str(rank))
                path = Path(path.replace("%A", array[0]).replace("%a", array[1]))
                streams[stream] = path.open("a")
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node), "SLURM_NODEID": str(rank // per_node)}
        tasks.append(subprocess.Popen(command, env=os.environ | shared | own, **streams))
    (state_folder() / f"{job}.step").write_text(str(os.getpid()))
    kills, killed_at = options.get("kill-on-bad-exit", "0") in ("", "1"), None
    while any(task.poll() is None for task in tasks):
        if kills and killed_at is None and any(task.poll() for task in tasks):
            hand_on(signal.SIGTERM)
            killed_at = time.monotonic()
        if killed_at is not None and time.monotonic() > killed_at + 30:  # KillWait
            hand_on(signal.SIGKILL)
        time.sleep(0.02)
    (state_folder() / f"{job}.step").unlink()
    codes = [128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks]
    with open(state_folder() / f"{job}.codes", "a") as file:
        file.write(json.dumps(codes) + "\n")
    return max(codes)


def numbers_of(typed: str) -> list[str]:
    """Return the job numbers that a typed one means: `1_2` an array's element, and an array's own all of them."""
    first, _, element = typed.partition("_")
    for file in state_folder().glob("*.json"):
        jobs = json.loads(file.read_text())["jobs"]
        if file.stem == first and element:
            return [job for job, variables in jobs.items() if variables["SLURM_ARRAY_TASK_ID"] == element]
        if file.stem == first:
            return list(jobs)
        if first in jobs:
            return [first]
    return []


def signal_step(job: str, number: int) -> None:
    """Send a signal to the ranks of a job's step, if it has one now."""
    step = state_folder() / f"{job}.step"
    if step.exists():
        os.kill(int(step.read_text()), number)


def scontrol(arguments: list[str]) -> int:
    """Queue jobs again that are running: what is left of them is told to end."""
    verb, typed = arguments
    jobs = numbers_of(typed)
    if verb != "requeue" or not jobs:
        print(f"scontrol: error: {arguments}", file=sys.stderr)
        return 1
    for job in jobs:
        specs = (json.loads(file.read_text()) for file in state_folder().glob("*.json"))
        if not any(job in spec["jobs"] and "requeue" in spec["options"] for spec in specs):
            print(f"Requested operation is presently disabled for job {job}", file=sys.stderr)
            return 1
        (state_folder() / f"{job}.requeue").touch()
        signal_step(job, signal.SIGTERM)
    return 0


def scancel(arguments: list[str]) -> int:
    """Send a signal to the ranks of a job."""
    options, (typed,) = parse(arguments)
    for job in numbers_of(typed):
        signal_step(job, getattr(signal, f"SIG{options.get('signal', 'TERM')}"))
    return 0


def sacct(arguments: list[str]) -> int:
    """Tell the states of jobs."""
    print("JobID|State|NodeList")
    for typed in (value for option, value in pairwise(arguments) if option == "-j"):
        spec = json.loads((state_folder() / f"{typed}.json").read_text())
        for job, variables in spec["jobs"].items():
            name = f"{typed}_{variables['SLURM_ARRAY_TASK_ID']}" if variables else typed
            print(f"{name}|{(state_folder() / f'{job}.state').read_text()}|127.0.0.1")
    return 0


if __name__ == "__main__":
    program, *given = sys.argv[1:]
    if program in PROGRAMS:
        with open(state_folder() / "calls.txt", "a") as record:
            record.write(json.dumps([program, *given]) + "\n")
    sys.exit({f.__name__: f for f in (sbatch, work_off, srun, scontrol, scancel, sacct)}[program](given))
