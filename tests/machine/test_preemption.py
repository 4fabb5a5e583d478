"""Told to leave: at once outside training, by a flag inside it; never a save in a handler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.processes import is_running

START = "import time\nfrom visllama.machine import preemption as p\np.listen()\n"


def heed_ctrl_c() -> None:
    """Let a process heed Ctrl-C as one that a person starts, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(code: str, *signals: int, env: dict | None = None) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        preexec_fn=heed_ctrl_c,
    )
    said = process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    out, err = process.communicate(timeout=30)
    return process.returncode, said + out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_training_a_process_leaves_at_once(number):
    code, _, err = run("print('there', flush=True); time.sleep(30)", number)
    assert code == 143 and "told to leave" in err


def test_inside_training_a_flag_is_set_and_nothing_else():
    code, out, _ = run(
        "p.begin_training(); print('there', flush=True); time.sleep(1); print(p.pending_request())", signal.SIGTERM
    )
    assert code == 0 and out.split() == ["there", "1"]


def test_what_was_told_behind_the_last_step_is_done_when_training_ends():
    code, out, _ = run(
        "p.begin_training(); print('there', flush=True); time.sleep(1); p.end_training(); print('on')", signal.SIGTERM
    )
    assert code == 143 and out.split() == ["there"]


def test_the_exit_code_is_the_users():
    code, *_ = run("p.configure(75, False); print('there', flush=True); time.sleep(30)", signal.SIGTERM)
    assert code == 75
    code, *_ = run("p.configure(75, False); print('there', flush=True); raise p.Preempted(p.LEAVE)")
    assert code == 75


def test_children_are_told_and_do_not_outlive_their_parent():
    child = "import subprocess, sys\nc = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\np.watch_over([c])\nprint(c.pid, flush=True)\ntime.sleep(30)"
    _, out, _ = run(child, signal.SIGTERM)
    time.sleep(0.5)
    assert not is_running(int(out))


def test_a_rank_ends_when_its_parent_is_killed(tmp_path):
    grandchild = f"import os, time\nfrom visllama.machine import preemption as p\np.end_with_parent()\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    parent = f"import os, subprocess, sys, time\nfrom visllama.machine import preemption as p\nos.environ[p.PARENT] = str(os.getpid())\nsubprocess.Popen([sys.executable, '-c', {grandchild!r}])\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent])
    until = time.monotonic() + 30
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(1.5)
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("number", "requeues", "rank", "calls"),
    [(signal.SIGUSR1, True, "0", ["requeue 12_3"]), (signal.SIGTERM, True, "0", []), (signal.SIGUSR1, False, "0", []), (signal.SIGUSR1, True, "1", [])],
)  # fmt: skip
def test_slurm_is_asked_once_and_only_where_it_gave_notice(tmp_path, number, requeues, rank, calls):
    """A job that its user cancels (SIGTERM) must not come back."""
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "99",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_PROCID": rank,
    }
    code, *_ = run(f"p.configure(143, {requeues}); print('there', flush=True); time.sleep(30)", number, env=env)
    found = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert code == 143 and found == calls


def test_a_loading_process_heeds_its_rank_alone():
    """Whoever signals all processes of a job does not take the data away; the rank that has started it does."""
    code = "import os, signal, time\nchild = os.fork()\nif not child:\n    p.heed_parent_alone(0)\n    time.sleep(60)\n    os._exit(7)\n"
    code += "time.sleep(0.5)\nprint(child, flush=True)\ntime.sleep(2)\nprint(os.waitpid(child, os.WNOHANG)[0])\nos.kill(child, signal.SIGTERM)\nprint(os.waitpid(child, 0)[1])"
    process = subprocess.Popen([sys.executable, "-c", START + code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(child, number)
        time.sleep(0.3)
    assert process.communicate(timeout=30)[0].split() == ["0", "0"], "there still; then ended as it was told"


def test_workers_that_are_left_do_not_keep_a_process_from_ending():
    code = "import torch\nfrom torch.utils.data import DataLoader\nloader = iter(DataLoader(range(10**6), num_workers=2, worker_init_fn=p.heed_parent_alone))\nnext(loader)\nimport builtins\nbuiltins.kept = loader\nprint('there', flush=True)"
    assert run(code)[0] == 0


def test_a_process_that_waits_inside_a_library_leaves_too():
    """As a rank does for others that never come: the main thread is not in Python, and no handler runs."""
    code = "import hashlib\nprint('there', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)"
    assert run(code, signal.SIGTERM)[0] == 143


def test_ctrl_c_in_training_is_heeded_like_sigterm_and_answered():
    code = "p.begin_training(); print('there', flush=True); time.sleep(1); print(p.pending_request())"
    code, out, err = run(code, signal.SIGINT)
    assert code == 0 and out.split() == ["there", "1"]
    assert "after this step it is saved; Ctrl-C again ends it at once" in err and "Traceback" not in err


def test_a_second_ctrl_c_ends_training_at_once():
    code, out, err = run(
        "p.begin_training(); print('there', flush=True); time.sleep(20); print('on')", signal.SIGINT, signal.SIGINT
    )
    assert code == 143 and out.split() == ["there"]
    assert "not saved; resume= goes on from the last checkpoint" in err


def test_ctrl_c_outside_training_leaves_at_once():
    code, _, err = run("print('there', flush=True); time.sleep(30)", signal.SIGINT)
    assert code == 143 and "nothing is lost" in err and "Traceback" not in err


def test_ctrl_c_stays_ignored_where_it_was():
    """A shell ignores it for what a script has put in the background."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code = f"{ignored}p.listen(); p.begin_training(); print('there', flush=True); time.sleep(1); print(p.pending_request())"
    assert run(code, signal.SIGINT)[1].split() == ["there", "0"]


def test_the_last_work_is_done_before_the_process_leaves(tmp_path):
    work = f"p.before_leaving(lambda: open({str(tmp_path / 'done')!r}, 'w').write('x')); "
    code, *_ = run(f"{work}print('there', flush=True); time.sleep(30)", signal.SIGTERM)
    assert code == 143 and (tmp_path / "done").read_text() == "x"


def test_last_work_that_fails_or_hangs_keeps_nobody(tmp_path):
    code, _, err = run("p.before_leaving(lambda: 1 / 0); print('there', flush=True); time.sleep(30)", signal.SIGTERM)
    assert code == 143 and "division by zero" in err
