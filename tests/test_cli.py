import inspect
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.support.commands import ROOT
from visllama import cli
from visllama.cli import Understood, options_first
from visllama.errors import ConfigError


def visllama(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "visllama", *arguments], capture_output=True, text=True, timeout=120)


def test_no_verb_lists_the_verbs():
    ended = visllama()
    assert ended.returncode == 0 and all(verb in ended.stdout for verb in ("train", "evaluate", "prepare"))


def test_an_unknown_verb_is_an_error():
    ended = visllama("trian")
    assert ended.returncode == 2 and "train" in ended.stdout


@pytest.mark.parametrize("verb", ["train", "evaluate", "prepare"])
def test_help_of_each_verb(verb):
    ended = visllama(verb, "--help")
    assert ended.returncode == 0 and f"visllama {verb}" in ended.stdout and "seed: 1" in ended.stdout


def test_config_can_be_printed():
    ended = visllama("train", "--cfg", "job", "optim.lr=0.125")
    assert ended.returncode == 0 and "lr: 0.125" in ended.stdout


def test_unknown_source_of_prepare_is_named(tmp_path):
    ended = visllama("prepare", "source=cooc", f"hydra.run.dir={tmp_path}/x")
    assert ended.returncode == 2 and "source=cooc: did you mean" in ended.stderr and "source=coco" in ended.stderr


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("name=lr -m optim.lr=1,2", "-m name=lr optim.lr=1,2"),
        ("a=1 --config-dir my=conf b=2", "--config-dir my=conf a=1 b=2"),
        ("~optim.betas --cfg job", "--cfg job ~optim.betas"),
        ("--help", "--help"),
    ],
)
def test_overrides_may_stand_on_both_sides_of_an_option(typed, read):
    assert options_first(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("launch=slurm optim.lr=1e-3", "-m launch=slurm optim.lr=1e-3  or leave out launch=slurm"),
        ("hydra/launcher=slurm name=x", "-m hydra/launcher=slurm name=x  or leave out hydra/launcher"),
        ("-m launch=slurm optim.lr=1e-3,1e-2", "no sbatch here: type it on the login node"),
    ],
)
def test_a_launcher_that_would_not_launch_is_refused(tmp_path, typed, says):
    command = [sys.executable, "-m", "visllama", "train", *typed.split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 2 and says in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_that_is_an_extra_is_named(tmp_path):
    """Where submitit is not there."""
    hide = "import sys; sys.modules['submitit'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    command = [sys.executable, "-m", "visllama", "train", "-m", "launch=slurm", "optim.lr=1e-3,1e-2"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert ended.returncode == 2 and "pip install 'visllama[slurm]'" in ended.stderr


@pytest.mark.slow
def test_commands_are_quiet(tmp_path):
    """Nothing that a user types by the README puts a warning on the terminal."""
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), "red").save(tmp_path / f"{name}.jpg")
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a red square\nb.jpg,another one\n")
    small = ["trainer.max_steps=2", "stage.global_batch_size=16", "data.num_val_records=16"]
    judged = ["evaluation.scenes_caption.source.num_records=8", "evaluation.scenes_caption.metrics=[CIDEr]"]
    unjudged = [*small, "judge=false"]
    weights = "outputs/first/run/weights"

    for command in (
        ["train", *small, *judged, "name=first", "hydra.run.dir=outputs/first/run"],
        ["train", "stage=finetune", f"init_from={weights}", *unjudged],
        ["train", "-m", "seed=1,2", *unjudged],
        ["train", "trainer.devices=2", "trainer/strategy=ddp", *unjudged],
        ["evaluate", f"weights={weights}", *judged],
        ["caption", f"weights={weights}", "images=a.jpg"],
        ["prepare", "source=folder", "images=.", "table=captions.csv", "name=mine"],
        ["inspect", *small],
        ["plan", *small],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "visllama", *command], capture_output=True, text=True, timeout=600, cwd=tmp_path
        )
        assert ended.returncode == 0, (command, ended.stderr[-3000:])
        warnings = [line for line in (ended.stdout + ended.stderr).splitlines() if "warn" in line.lower()]
        assert warnings == [], command


def test_a_rank_whose_work_is_done_leaves_at_once(tmp_path):
    """Not by taking its interpreter down, under which torch's threads were seen to abort."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os; atexit.register(os._exit, 134)")
    command = [sys.executable, "-m", "visllama", "train", "--cfg", "job"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for rank, code in (("0", 134), ("1", 0)):
        ended = subprocess.run(command, capture_output=True, timeout=120, env=environment | {"LOCAL_RANK": rank})
        assert ended.returncode == code


def test_a_crash_prints_one_traceback_without_hydras_frames_and_where_its_log_is(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "callbacks" / "broken.yaml").write_text("broken:\n  _target_: broken.Broken\n")
    small = ["trainer=cpu", "trainer.max_steps=2", "data.num_val_records=4", "hydra.run.dir=run"]
    own = ["--config-dir", "conf", "plugins=[broken]", "callbacks=broken"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "visllama", "train", *small, *own]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1 and "hydra/" not in ended.stderr, ended.stderr
    *_, error, told = ended.stderr.splitlines()
    assert error == "ZeroDivisionError: division by zero"
    assert told == f"visllama train: stopped by this error; {tmp_path}/run/log.txt has it too"
    assert (tmp_path / "run" / "log.txt").read_text().count("ZeroDivisionError") == 1


BROKEN = """
from lightning.pytorch.callbacks import Callback

class Broken(Callback):
    def on_train_batch_end(self, *_):
        1 / 0
"""
COUNTING = """
import runpy, sys
from collections import Counter
from visllama import cli
from visllama.training import assembly, verb

calls = Counter()

def counted(name, function):
    def call(*arguments):
        calls[name] += 1
        return function(*arguments)
    return call

cli._CHECKS["train"] = counted("check_train", cli._CHECKS["train"])
verb.build_assembly = counted("build_assembly", verb.build_assembly)
assembly.check_parts = counted("check_parts", assembly.check_parts)
sys.argv = ["visllama", "train", *sys.argv[1:]]
try:
    cli.main()
finally:
    print("COUNTED", dict(calls))
"""
SHORT = ["experiment=smoke", "trainer.max_steps=2", "judge=false", "trainer=cpu"]


def test_the_error_of_a_sweeps_job_does_not_hold_what_was_built_for_it(monkeypatch):
    """The sweep keeps the error until its end, and with the error the frame that returned it."""

    class Data:
        pass

    understood = [Understood(None, Data())]
    data = weakref.ref(understood[0].assembled)

    def fail(verb, understood):
        raise ConfigError("no such thing")

    monkeypatch.setattr(cli, "understand", lambda verb, cfg: understood.pop())
    monkeypatch.setattr(cli, "work", fail)
    monkeypatch.setattr(cli, "invocation", lambda: SimpleNamespace(is_of_sweep=True))
    monkeypatch.setattr(cli, "run_folder", lambda: Path("run"))
    job = inspect.getclosurevars(cli._verb("caption")).nonlocals["job"]

    error = job(None)

    assert str(error) == "no such thing" and data() is None


@pytest.mark.parametrize("words", [SHORT, pytest.param([*SHORT, "-m", "seed=1,2"], marks=pytest.mark.slow)])
def test_each_check_runs_once_a_job(tmp_path, words):
    command = [sys.executable, "-c", COUNTING, *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ended.returncode == 0, ended.stderr
    num_jobs = 2 if "-m" in words else 1
    assert f"COUNTED {dict.fromkeys(('check_train', 'build_assembly', 'check_parts'), num_jobs)}" in ended.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config-name", "mine"], "mine"),
        (["data=shards", "data.sources.shards.path=${oc.env:NOT_THERE}"], "NOT_THERE"),
    ],
)
def test_what_fails_while_it_is_understood_is_told_without_a_traceback(tmp_path, words, says):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [train, _self_]\n")
    command = [sys.executable, "-m", "visllama", "train", "--config-dir", "conf", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_paths_of_ones_own_keep_run_folder_log_and_checks(tmp_path):
    folder = tmp_path / "my_conf" / "paths"
    folder.mkdir(parents=True)
    names = ("data", "outputs", "cache", "models")
    (folder / "mine.yaml").write_text("\n".join(f"{name}: {tmp_path / 'mine' / name}" for name in names))
    program = [
        sys.executable,
        "-m",
        "visllama",
        "train",
        "--config-dir",
        str(tmp_path / "my_conf"),
        "paths=mine",
        *SHORT,
    ]
    ended = subprocess.run([*program, "optim.lr=0"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ended.returncode == 2 and "optim.lr=0" in ended.stderr and not (tmp_path / "mine").exists()
    ended = subprocess.run([*program, "name=x"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (run,) = (tmp_path / "mine" / "outputs" / "x").iterdir()
    made = {path.name for path in run.iterdir()}
    assert {"log.txt", ".hydra", "command.yaml", "config.yaml", "metrics.json", "weights"} <= made
    assert "trained" in (run / "log.txt").read_text(), "the start-up table"
    assert {path.name for path in tmp_path.iterdir()} == {"my_conf", "mine"}
