import signal

from visllama.machine import preemption
from visllama.sweep.queue import take_over_signals


def test_submitits_handlers_are_gone(monkeypatch):
    """They ignore SIGTERM, and at SIGUSR2 stop a job without a checkpoint, or queue it again to begin anew."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
    before, told = {number: signal.getsignal(number) for number in numbers}, []

    def listen() -> None:  # visllama's own would end this process
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: told.append(signal.Signals(number).name))

    monkeypatch.setattr(preemption, "listen", listen)
    try:
        for number in numbers:
            signal.signal(number, lambda *_: told.append("submitit"))
        take_over_signals()
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
            signal.raise_signal(number)
        assert told == ["SIGTERM", "SIGUSR1"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
