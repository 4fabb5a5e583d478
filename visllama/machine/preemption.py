"""SIGTERM and SIGUSR1 (a machine is wanted back) and Ctrl-C: a flag is set, and a run leaves where nothing is lost.

While a run trains, its ranks agree after each step whether one of them was told, save, and leave together. At any
other time (start-up, judging) there is nothing to save: whoever is told leaves at once. Nothing is ever done inside a
signal handler, which may stand between any two bytecodes: a thread reads what has arrived.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

TOLD, REQUEUE = 1, 2
"""What was asked for: to leave (SIGTERM, Ctrl-C), or to leave and be started again (SIGUSR1, SLURM's
--signal=USR1@120)."""
_MEANING = {signal.SIGTERM: TOLD, signal.SIGINT: TOLD, signal.SIGUSR1: REQUEUE}


PARENT = "VISLLAMA_PARENT"
"""The variable that names the process that has started a rank, to that rank."""
_EVERY_S = 0.2
_LAST_WORD_S = 5.0
_PR_SET_PDEATHSIG = 1


class Preempted(SystemExit):
    """The run leaves because it was told to, and can be gone on with.

    Args:
        what: It was told.
    """

    def __init__(self, what: int) -> None:
        super().__init__(_state.exit_code)
        self.what = what


class _State:
    told = 0
    num_interrupts = 0
    exit_code = 143
    requeues = False
    is_training = False
    children: tuple[subprocess.Popen, ...] = ()
    before_leaving: Callable[[], None] | None = None


_state = _State()


def listen() -> None:
    """Begin to heed the signals, also while the main thread waits inside a library, where no handler would run."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in _MEANING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as Ctrl-C is in what a script has put in the background
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader, writer), daemon=True, name="signals").start()
    atexit.register(_end_quickly)  # so early that it comes last


def _end_quickly() -> None:
    """Keep Python from looking for garbage among all objects at its end, for a second or more.

    Its end also gives signals back to the system: one that comes late would change the exit code.
    """
    gc.freeze()
    for number in _MEANING:
        signal.signal(number, signal.SIG_IGN)


def configure(exit_code: int, requeues: bool) -> None:
    """Keep with which code to leave, and whether SLURM is asked for another start where it gave notice."""
    _state.exit_code, _state.requeues = exit_code, requeues


def heed_parent_alone(_: int) -> None:
    """Heed, in a process that loads for a rank, that rank alone: a signal to all must not take its data away.

    It ends with the rank, in whatever way that ends; else torch's would look only every five seconds whether it has.
    """
    if sys.platform == "linux":  # elsewhere there is no telling who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, _MEANING)
        threading.Thread(target=_heed_parent, args=(os.getppid(),), daemon=True).start()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _heed_parent(parent: int) -> None:
    while True:
        found = signal.sigwaitinfo(_MEANING)
        if found.si_pid == parent and found.si_signo == signal.SIGTERM:
            os._exit(0)


def _listen(reader: socket.socket, _: socket.socket) -> None:
    while number := reader.recv(1):
        if number[0] == signal.SIGINT:
            _heed_interrupt()
        if number[0] in _MEANING:
            tell(_MEANING[number[0]])


def _heed_interrupt() -> None:
    """Answer Ctrl-C on the terminal; a second one ends the process, whatever it is in the middle of."""
    _state.num_interrupts += 1
    if _state.num_interrupts > 1:
        _end_children()
        _exit(b"visllama: told to leave again: not saved; resume= goes on from the last checkpoint\n")
    if _state.is_training:
        os.write(2, b"\nvisllama: told to leave: after this step it is saved; Ctrl-C again ends it at once\n")


def tell(what: int) -> None:
    """Ask this process to leave."""
    _state.told = max(_state.told, what)
    if not _state.is_training:
        leave_at_once(_state.told)


def told() -> int:
    """Return what was asked of this process so far: 0, `TOLD` or `REQUEUE`."""
    return _state.told


def exit_code() -> int:
    return _state.exit_code


def watch_over(children: list[subprocess.Popen]) -> None:
    """Name the ranks that this process has started: who leaves at once tells them."""
    _state.children = tuple(children)


def watched() -> tuple[subprocess.Popen, ...]:
    return _state.children


def end_with_parent() -> None:
    """Let this rank end when the process that has started it is gone, whatever it waits for."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_follow_parent, args=(int(parent),), daemon=True, name="parent").start()


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    os._exit(_state.exit_code if _state.told else 1)


def begin_training() -> None:
    """From here on only set the flag: at the end of a step it is asked for by `told`."""
    _state.is_training = True


def end_training() -> None:
    """From here on leave at once again; what was told since the last step ended is done now."""
    was_training, _state.is_training = _state.is_training, False
    if was_training and _state.told:
        leave_at_once(_state.told)


def before_leaving(work: Callable[[], None] | None) -> None:
    """Name what is still done when this process leaves at once, for a few seconds at most; None is nothing."""
    _state.before_leaving = work


def wait_to_be_told() -> None:
    """Return who has started the ranks time to tell this one too, when another is gone: it may have been told alone."""
    until = time.monotonic() + _LAST_WORD_S
    while time.monotonic() < until:
        time.sleep(0.05)  # who is told meanwhile leaves out of it


def leave_at_once(what: int) -> None:
    """End this process without any more of its work, from any of its threads."""
    if _state.before_leaving is not None:
        last_work = threading.Thread(target=_quietly, args=(_state.before_leaving,), daemon=True)
        last_work.start()
        last_work.join(_LAST_WORD_S)
    _end_children()
    requeue(what)
    _exit(b"visllama: told to leave, before or after training: nothing is lost\n")


def _exit(message: bytes) -> None:
    """Say why, and end this process in the middle of whatever it does."""
    os.write(2, message)
    end_now(_state.exit_code)


def end_now(code: int) -> NoReturn:
    """End this process, and leave its interpreter as it is.

    Of a rank whose work is done the interpreter was seen to abort when it was taken down ("terminate called without an
    active exception"): the rank ended with another code than 0, and the others were ended with it.

    Args:
        code: The code to exit with.
    """
    for stream in (sys.stdout, sys.stderr):
        _quietly(stream.flush)
    os._exit(code)


def _end_children() -> None:
    """Tell the processes that this one has started to leave."""
    for child in _children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)


def _children() -> list[int]:
    """Return the processes that this one has started: ranks, and programs that notice nothing, as METEOR's Java."""
    found = {child.pid for child in _state.children if child.poll() is None}
    for listing in Path("/proc/self/task").glob("*/children"):  # of Linux; elsewhere it is ranks alone
        with suppress(OSError):
            found.update(map(int, listing.read_text().split()))
    return sorted(found)


def requeue(what: int) -> None:
    """Ask SLURM to start the job again, on the first rank, where it had given notice (SIGUSR1) and we are to."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"
    if what == REQUEUE and _state.requeues and is_first and re.fullmatch(r"\d+", job):
        name = f"{job}_{task}" if task else job
        _quietly(lambda: subprocess.run(["scontrol", "requeue", name], check=False, timeout=60))


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:  # of whatever type: the process ends anyway
        os.write(2, f"visllama: {error}\n".encode())
