import os
import subprocess
import sys

from lightning.pytorch.strategies.launchers import subprocess_script

from tests.support.processes import is_running
from visllama.machine import preemption
from visllama.parallel.launch import child_command, forget_ranks, launch_our_way, watch


def test_a_rank_is_started_with_this_jobs_verb_and_overrides(compose_config, tmp_path):
    """Never with `--multirun`: each child would go through the whole sweep by itself."""
    compose_config("train", "optim.lr=0.5", "name='a b'")
    command, folder = child_command(1)
    assert command[:4] == [sys.executable, "-m", "visllama", "train"]
    assert "optim.lr=0.5" in command and "name='a b'" in command and "-m" not in command[2:]
    assert f"hydra.run.dir={tmp_path}" in command and "hydra.output_subdir=null" in command
    assert folder == os.getcwd()


def test_lightning_uses_it(monkeypatch):
    monkeypatch.setenv(preemption.PARENT, "")
    launch_our_way()
    assert subprocess_script._hydra_subprocess_cmd is child_command
    assert subprocess_script._launch_process_observer is watch
    assert os.environ[preemption.PARENT] == str(os.getpid())


def test_forgetting_ranks_without_any_is_harmless(compose_config):
    compose_config("train")
    forget_ranks()


SCRIPT = """
import subprocess, sys, time
from visllama.parallel.launch import watch
from visllama.machine import preemption
preemption.listen()
children = [subprocess.Popen([sys.executable, "-c", code]) for code in sys.argv[1:]]
print(*[c.pid for c in children], flush=True)
watch(children)
time.sleep(60)
"""


def ends(*codes: str) -> tuple[int, str, list[int]]:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *codes], capture_output=True, text=True, timeout=50)
    return ended.returncode, ended.stderr, list(map(int, ended.stdout.split()))


def test_a_rank_that_fails_takes_the_others_down_with_its_code():
    code, said, pids = ends("import time; time.sleep(60)", "import sys; sys.exit(7)")
    assert code == 7 and "rank 2 has ended with code 7" in said and not any(map(is_running, pids))


def test_a_rank_that_was_killed_is_told_as_a_shell_does():
    code, *_ = ends("import os; os.kill(os.getpid(), 9)")
    assert code == 128 + 9


def test_a_rank_that_was_told_to_leave_takes_its_parent_along():
    code, said, _ = ends("import sys; sys.exit(143)")
    assert code == 143 and "told to leave" in said
