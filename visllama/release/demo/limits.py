"""How often a client may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

_MOST_CLIENTS = 10_000
"""The largest number of clients that are remembered."""


class Rate:
    """Count the requests of each client in a window of time.

    Args:
        most: The largest number in a window.
        window_s: Its length.
        clock: Returns the time in seconds.
    """

    def __init__(self, most: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._window_s, self._clock = most, window_s, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, client: str) -> int:
        """Count a request; return 0, or the seconds to wait where it is one too many, which is not counted."""
        now = self._clock()
        times = self._times.setdefault(client, deque())
        self._times.move_to_end(client)
        if len(self._times) > _MOST_CLIENTS:
            self._times.popitem(last=False)
        while times and times[0] <= now - self._window_s:
            times.popleft()
        if len(times) >= self._most:
            return max(1, math.ceil(times[0] + self._window_s - now))
        times.append(now)
        return 0
