"""End a run at SIGTERM, SIGUSR1 or Ctrl-C without losing what it has trained.

Each of these signals is a request to leave. While a run trains, a request only sets a flag; after each step the ranks
agree whether one of them has a request, save, and leave together. At any other time (start-up, judging) there is
nothing to save, and a request ends the process at once. A thread reads the signals, because a signal handler may run
between any two bytecodes.
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

LEAVE = 1
"""The request to leave: SIGTERM or Ctrl-C."""
REQUEUE = 2
"""The request to leave and to be started again: SIGUSR1, from SLURM's --signal=USR1@120."""
_MEANING = {signal.SIGTERM: LEAVE, signal.SIGINT: LEAVE, signal.SIGUSR1: REQUEUE}
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
    """Raised to end a run that was asked to leave and has saved; it exits with the code that `configure` has set.

    Args:
        what: The request, `LEAVE` or `REQUEUE`.
    """

    def __init__(self, what: int) -> None:
        super().__init__(_state.exit_code)
        self.what = what


class _State:
    """The state of this process.

    Attributes:
        request: The request so far: 0 for none, `LEAVE` or `REQUEUE`.
        num_interrupts: How often Ctrl-C was pressed.
        exit_code: The code to leave with.
        requeues: Whether SLURM is asked to start the job again after SIGUSR1.
        is_training: Whether a request only sets `request`, and the process leaves after its step.
        children: The ranks that this process has started.
        before_leaving: Work to do when this process leaves at once.
    """

    request = 0
    num_interrupts = 0
    exit_code = 143
    requeues = False
    is_training = False
    children: tuple[subprocess.Popen, ...] = ()
    before_leaving: Callable[[], None] | None = None


_state = _State()


def listen() -> None:
    """Start the thread that turns SIGTERM, SIGUSR1 and Ctrl-C into requests to leave; call it once, early, in main.

    Without the thread no signal is acted on while the main thread waits inside a library. A signal that the process was
    started to ignore stays ignored. At the end of the process all three signals are ignored.
    """
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
    """Make Python's end quick and safe: without a search for garbage, which takes a second, and without signals."""
    gc.freeze()
    # At its end Python gives the signals back to the system, and one that comes late would change the exit code.
    for number in _MEANING:
        signal.signal(number, signal.SIG_IGN)


def configure(exit_code: int, requeues: bool) -> None:
    """Set the exit code of this process after a request to leave, and whether SLURM starts the job again.

    Without a call the code is 143, and no job is started again.

    Args:
        exit_code: The exit code.
        requeues: Whether `requeue` asks SLURM to start the job again after SIGUSR1.
    """
    _state.exit_code = exit_code
    _state.requeues = requeues


def heed_parent_alone(_: int) -> None:
    """Make a process that loads data for a rank ignore all requests to leave but SIGTERM from that rank.

    A signal to all processes must not take a rank's data away before its step. On Linux the process is killed as soon
    as the rank ends in any way; on other systems this function does nothing. torch's `DataLoader` calls it in each of
    its worker processes, as its `worker_init_fn`.

    Args:
        _: The number of the worker, which is not used.
    """
    # Elsewhere a process cannot know who has sent it a signal.
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, _MEANING)
        threading.Thread(target=_heed_parent, args=(os.getppid(),), daemon=True).start()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _heed_parent(parent: int) -> None:
    """End this process at SIGTERM from its parent, and take no notice of any other signal."""
    while True:
        # The signals are blocked: each one waits until it is taken here.
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
    """Count a Ctrl-C: a second one ends the process at once; a first one in training prints that the run will save."""
    _state.num_interrupts += 1
    if _state.num_interrupts > 1:
        _end_children()
        _exit(b"visllama: told to leave again: not saved; resume= goes on from the last checkpoint\n")

    if _state.is_training:
        os.write(2, b"\nvisllama: told to leave: after this step it is saved; Ctrl-C again ends it at once\n")


def tell(what: int) -> None:
    """Record a request to leave for this process, and end the process by `leave_at_once` unless it trains.

    Between `begin_training` and `end_training` the request is only kept, and `pending_request` returns it.

    Args:
        what: The request, `LEAVE` or `REQUEUE`; an earlier `REQUEUE` is kept.
    """
    _state.request = max(_state.request, what)

    if not _state.is_training:
        leave_at_once(_state.request)


def pending_request() -> int:
    """Return the request to leave that this process has got: 0 for none, `LEAVE`, or `REQUEUE` once there was one."""
    return _state.request


def exit_code() -> int:
    """Return the code with which this process exits after a request to leave: 143, or what `configure` has set."""
    return _state.exit_code


def watch_over(children: list[subprocess.Popen]) -> None:
    """Remember the ranks that this process has started, in place of those remembered before.

    They get SIGTERM when this process leaves at once. `watched` returns them.

    Args:
        children: The processes, running or ended.
    """
    _state.children = tuple(children)


def watched() -> tuple[subprocess.Popen, ...]:
    """Return the processes last given to `watch_over`, ended ones included; an empty tuple before that."""
    return _state.children


def end_with_parent() -> None:
    """Start a thread that ends this rank when the rank that has started it is gone, even inside a collective.

    The exit code is then that of a request to leave if there was one, else 1. The parent's id is read from the
    environment variable `PARENT`; where it is not set, nothing is done.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        # A thread, because the main one may wait for ever inside a collective.
        threading.Thread(target=_follow_parent, args=(int(parent),), daemon=True, name="parent").start()


def _follow_parent(parent: int) -> None:
    # A process whose parent has ended is given another one.
    while os.getppid() == parent:
        time.sleep(_EVERY_S)

    os._exit(_state.exit_code if _state.request else 1)


def begin_training() -> None:
    """Make a request to leave wait from now on, instead of ending this process at once.

    The run reads a waiting request by `pending_request` at the end of each step.
    """
    _state.is_training = True


def end_training() -> None:
    """Make a request to leave end this process at once again; one that came since `begin_training` ends it here."""
    was_training = _state.is_training
    _state.is_training = False

    if was_training and _state.request:
        leave_at_once(_state.request)


def before_leaving(work: Callable[[], None] | None) -> None:
    """Set the function that `leave_at_once` calls first, such as one that closes trackers, in place of an earlier one.

    It is called in a thread and given five seconds; its exceptions are printed.

    Args:
        work: The function; None sets none.
    """
    _state.before_leaving = work


def wait_to_be_told() -> None:
    """Wait five seconds, so that a request to leave that is on its way can end this process.

    Call it at an error that another rank's end may have caused: that rank may have got the request a moment earlier. If
    a request comes outside of training, the process ends, and this function does not return.
    """
    until = time.monotonic() + _LAST_WORD_S
    while time.monotonic() < until:
        time.sleep(0.05)


def leave_at_once(what: int) -> None:
    """End this process now, from any of its threads; this function does not return.

    Before that, the function set by `before_leaving` is called, the processes that this one has started get SIGTERM,
    and for `REQUEUE` SLURM is asked to start the job again. The exit code is the one that was passed to `configure`.
    No `finally` block and no `atexit` function runs.

    Args:
        what: `LEAVE`, or `REQUEUE` if the job is to be started again.
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
    """Write a message to stderr, and end this process at once with the code of `configure`."""
    os.write(2, message)
    end_now(_state.exit_code)


def end_now(code: int) -> NoReturn:
    """Flush stdout and stderr, and end this process at once, without Python's own shutdown.

    No `finally`, no `atexit` function and no other thread runs any more. A rank that shut Python down after its work
    was seen to abort ("terminate called without an active exception") with a code other than 0, so that the other
    ranks were ended too.

    Args:
        code: The exit code.
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
    """Ask SLURM to start this job again (`scontrol requeue`), which ends the running one.

    Nothing is done unless `what` is `REQUEUE`, `configure` has set `requeues`, this is srun's first process, and the
    environment has a SLURM job's id. An error is printed and not raised.

    Args:
        what: The request to leave, `LEAVE` or `REQUEUE`.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"

    # The id goes into a command, and the environment may hold anything.
    is_asked = what == REQUEUE and _state.requeues and is_first
    if is_asked and re.fullmatch(r"\d+", job):
        # Of an array of jobs only this one begins again.
        name = f"{job}_{task}" if task else job
        _quietly(lambda: subprocess.run(["scontrol", "requeue", name], check=False, timeout=60))


def _quietly(work: Callable[[], object]) -> None:
    """Call a function, and print an exception instead of raising it: the process ends anyway."""
    try:
        work()
    except Exception as error:
        os.write(2, f"visllama: {error}\n".encode())
