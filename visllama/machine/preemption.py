"""Leave at SIGTERM and SIGUSR1 (a machine is wanted back) and at Ctrl-C, where nothing is lost.

While a run trains, a signal sets a flag. After each step the ranks agree whether one of them was told to leave, save,
and leave together. At any other time (start-up, judging) there is nothing to save, and a process that is told leaves
at once. No work is done inside a signal handler, which may run between any two bytecodes: a thread reads the signals.
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

TOLD = 1
"""The request to leave: SIGTERM or Ctrl-C."""
REQUEUE = 2
"""The request to leave and to be started again: SIGUSR1, from SLURM's --signal=USR1@120."""
_MEANING = {signal.SIGTERM: TOLD, signal.SIGINT: TOLD, signal.SIGUSR1: REQUEUE}
"""The request that each signal makes; the greater number wins where several have arrived."""
PARENT = "VISLLAMA_PARENT"
"""The environment variable in which a rank finds the id of the process that has started it."""
_EVERY_S = 0.2
"""Seconds between two looks whether the parent is still there."""
_LAST_WORD_S = 5.0
"""Seconds that the work before leaving may take."""
_PR_SET_PDEATHSIG = 1
"""The number of `prctl`'s option, from Linux's <sys/prctl.h>."""


class Preempted(SystemExit):
    """The run leaves because it was told to, and can be resumed.

    Args:
        what: The request, `TOLD` or `REQUEUE`.
    """

    def __init__(self, what: int) -> None:
        super().__init__(_state.exit_code)
        self.what = what


class _State:
    """The state of this process.

    Attributes:
        told: The request so far: 0 for none, `TOLD` or `REQUEUE`.
        num_interrupts: How often Ctrl-C was pressed.
        exit_code: The code to leave with.
        requeues: Whether SLURM is asked to start the job again after SIGUSR1.
        is_training: Whether a request only sets `told`, and the process leaves after its step.
        children: The ranks that this process has started.
        before_leaving: Work to do when this process leaves at once.
    """

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
        # A shell ignores Ctrl-C in a process that a script has put in the background, and that has to stay so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)

    # Python writes the number of each signal into the socket, and the thread reads it there. The thread gets the
    # writer too, so that it is not closed as garbage.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader, writer), daemon=True, name="signals").start()

    # Functions run in the reverse of their order of registration: registered this early, it runs last.
    atexit.register(_end_quickly)


def _end_quickly() -> None:
    """Keep Python's end from taking a second or more to look for garbage, and from being hit by a late signal."""
    gc.freeze()
    # At its end Python gives the signals back to the system, and one that comes late would change the exit code.
    for number in _MEANING:
        signal.signal(number, signal.SIG_IGN)


def configure(exit_code: int, requeues: bool) -> None:
    """Set how this process leaves.

    Args:
        exit_code: The code to leave with.
        requeues: Whether SLURM is asked to start the job again after it gave notice (SIGUSR1).
    """
    _state.exit_code = exit_code
    _state.requeues = requeues


def heed_parent_alone(_: int) -> None:
    """Heed, in a process that loads data for a rank, that rank alone: a signal to all must not take its data away.

    The process ends with the rank, in whatever way that ends. Without this, torch's worker would look only every five
    seconds whether the rank is there.
    """
    # Elsewhere a process cannot know who has sent it a signal.
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, _MEANING)
        threading.Thread(target=_heed_parent, args=(os.getppid(),), daemon=True).start()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _heed_parent(parent: int) -> None:
    """End this process at SIGTERM from its parent, and take no notice of any other signal."""
    while True:
        received = signal.sigwaitinfo(_MEANING)
        if received.si_pid == parent and received.si_signo == signal.SIGTERM:
            os._exit(0)


def _listen(reader: socket.socket, _: socket.socket) -> None:
    """Read the numbers of signals, one byte each, and act on them."""
    while received := reader.recv(1):
        number = received[0]
        if number == signal.SIGINT:
            _heed_interrupt()
        if number in _MEANING:
            tell(_MEANING[number])


def _heed_interrupt() -> None:
    """Answer Ctrl-C on the terminal; a second one ends the process, whatever it is in the middle of."""
    _state.num_interrupts += 1
    if _state.num_interrupts > 1:
        _end_children()
        _exit(b"visllama: told to leave again: not saved; resume= goes on from the last checkpoint\n")

    if _state.is_training:
        os.write(2, b"\nvisllama: told to leave: after this step it is saved; Ctrl-C again ends it at once\n")


def tell(what: int) -> None:
    """Ask this process to leave: at once, or after its step while it trains.

    Args:
        what: The request, `TOLD` or `REQUEUE`.
    """
    _state.told = max(_state.told, what)
    if not _state.is_training:
        leave_at_once(_state.told)


def told() -> int:
    """Return the request to this process so far: 0 for none, `TOLD` or `REQUEUE`."""
    return _state.told


def exit_code() -> int:
    """Return the code that this process leaves with when it is told to."""
    return _state.exit_code


def watch_over(children: list[subprocess.Popen]) -> None:
    """Set the ranks that this process has started: it tells them to leave when it leaves at once."""
    _state.children = tuple(children)


def watched() -> tuple[subprocess.Popen, ...]:
    """Return the ranks that this process has started."""
    return _state.children


def end_with_parent() -> None:
    """Let this rank end when the process that has started it is gone, whatever it waits for."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        # A thread, because the main one may wait for ever inside a collective.
        threading.Thread(target=_follow_parent, args=(int(parent),), daemon=True, name="parent").start()


def _follow_parent(parent: int) -> None:
    # A process whose parent has ended is given another one.
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    os._exit(_state.exit_code if _state.told else 1)


def begin_training() -> None:
    """Let requests only set the flag from now on; the run reads it by `told` at the end of each step."""
    _state.is_training = True


def end_training() -> None:
    """Let requests end the process at once again, and obey one that has come since the last step."""
    was_training = _state.is_training
    _state.is_training = False

    if was_training and _state.told:
        leave_at_once(_state.told)


def before_leaving(work: Callable[[], None] | None) -> None:
    """Set the work to do when this process leaves at once, for a few seconds at most; None is no work."""
    _state.before_leaving = work


def wait_to_be_told() -> None:
    """Wait some seconds for a request to leave, when another rank is gone: it may have been told a moment earlier.

    A request that comes meanwhile ends the process, and this function does not return.
    """
    until = time.monotonic() + _LAST_WORD_S
    while time.monotonic() < until:
        time.sleep(0.05)


def leave_at_once(what: int) -> None:
    """End this process without any more of its work, from any of its threads.

    Args:
        what: The request, `TOLD` or `REQUEUE`.
    """
    if _state.before_leaving is not None:
        # In a thread, because the work may hang: closing a tracker sends what it has over a network.
        last_work = threading.Thread(target=_quietly, args=(_state.before_leaving,), daemon=True)
        last_work.start()
        last_work.join(_LAST_WORD_S)

    _end_children()
    requeue(what)
    _exit(b"visllama: told to leave, before or after training: nothing is lost\n")


def _exit(message: bytes) -> None:
    """Write a message, and end this process in the middle of whatever it does."""
    os.write(2, message)
    end_now(_state.exit_code)


def end_now(code: int) -> NoReturn:
    """End this process, and leave its interpreter as it is.

    When a rank whose work was done took its interpreter down, that was seen to abort ("terminate called without an
    active exception"): the rank ended with another code than 0, and the others were ended with it.

    Args:
        code: The code to exit with.
    """
    for stream in (sys.stdout, sys.stderr):
        _quietly(stream.flush)

    os._exit(code)


def _end_children() -> None:
    """Send SIGTERM to the processes that this one has started."""
    for child in _children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)


def _children() -> list[int]:
    """Return the ids of the processes that this one has started.

    These are ranks, and programs that would not notice its end, such as METEOR's Java.
    """
    pids = {child.pid for child in _state.children if child.poll() is None}

    # Only Linux has these listings; elsewhere the ranks alone are known.
    for listing in Path("/proc/self/task").glob("*/children"):
        # A thread may end between the two reads.
        with suppress(OSError):
            words = listing.read_text().split()
            pids.update(int(word) for word in words)

    return sorted(pids)


def requeue(what: int) -> None:
    """Ask SLURM to start the job again, if it gave notice (SIGUSR1) and `configure` allows it; the first rank asks.

    Args:
        what: The request, `TOLD` or `REQUEUE`.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"

    if what == REQUEUE and _state.requeues and is_first and re.fullmatch(r"\d+", job):
        name = f"{job}_{task}" if task else job
        _quietly(lambda: subprocess.run(["scontrol", "requeue", name], check=False, timeout=60))


def _quietly(work: Callable[[], object]) -> None:
    """Do work, and only print an exception of whatever type: the process ends anyway."""
    try:
        work()
    except Exception as error:
        os.write(2, f"visllama: {error}\n".encode())
