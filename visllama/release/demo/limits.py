"""Limit how often each client may ask."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

_MAX_CLIENTS = 10_000
"""The largest number of clients that are remembered."""


class Rate:
    """Counter of each client's requests in the last seconds, by which a further request is allowed or has to wait.

    Only the 10 000 clients that asked last are remembered.

    Args:
        most: The largest number of requests of a client in any `window_s` seconds.
        window_s: The length of time in which requests are counted, in seconds.
        clock: A function that returns the time in seconds.
    """

    def __init__(self, most: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._window_s = window_s
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, client: str) -> int:
        """Count a request of a client and return 0, or return the seconds to wait if it is one too many.

        A request that is one too many is not counted.

        Args:
            client: The name by which clients are told apart, such as an address.
        """
        now = self._clock()
        times = self._times.setdefault(client, deque())

        # The client that asked longest ago is the first one, and is forgotten first.
        self._times.move_to_end(client)
        if len(self._times) > _MAX_CLIENTS:
            self._times.popitem(last=False)

        # Requests that are older than the window count no more.
        while times and times[0] <= now - self._window_s:
            times.popleft()
        if len(times) >= self._most:
            remaining_s = times[0] + self._window_s - now
            return max(1, math.ceil(remaining_s))

        times.append(now)
        return 0
