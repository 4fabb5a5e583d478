"""The limit on how often a client may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

_MAX_CLIENTS = 10_000
"""The largest number of clients that are remembered."""


class Rate:
    """Count the requests of each client in a window of time.

    Args:
        most: The largest number of requests in a window.
        window_s: The length of the window, in seconds.
        clock: A function that returns the time in seconds.
    """

    def __init__(self, most: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._window_s = window_s
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, client: str) -> int:
        """Count a request, and return 0; where it is one too many, do not count it, and return the seconds to wait."""
        now = self._clock()
        times = self._times.setdefault(client, deque())

        # The client that asked longest ago is the first one, and is forgotten first.
        self._times.move_to_end(client)
        if len(self._times) > _MAX_CLIENTS:
            self._times.popitem(last=False)

        while times and times[0] <= now - self._window_s:
            times.popleft()
        if len(times) >= self._most:
            remaining_s = times[0] + self._window_s - now
            return max(1, math.ceil(remaining_s))
        times.append(now)
        return 0
