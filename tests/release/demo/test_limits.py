"""So many requests in a window, each client by itself."""

from __future__ import annotations

from visllama.release.demo.limits import Rate


def test_a_window_slides():
    now = [0.0]
    rate = Rate(2, 60, lambda: now[0])
    waits = []
    for now[0] in (0.0, 10.0, 20.0, 59.0, 60.0, 61.0, 70.0):
        waits.append(rate.wait_s("a"))
    assert waits == [0, 0, 40, 1, 0, 9, 0]
    assert rate.wait_s("b") == 0
