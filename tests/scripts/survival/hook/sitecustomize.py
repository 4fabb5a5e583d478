"""Tell what this process does, to a file, and do some of it slowly; put first by `life.py`."""

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
    "visllama.training.module": [
        ("VisLlamaModule.training_step", "step"),
        ("VisLlamaModule.validation_step", "validate"),
    ],
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
        os.write(file, (json.dumps(line) + "\n").encode())
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
    def __init__(self):
        self.busy = set()

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
