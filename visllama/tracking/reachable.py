"""Check within eight seconds whether a web server can be reached."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request

_REQUEST_S = 4.0
"""Time limit of the request, in seconds."""
_ALL_S = 8.0
"""Time limit of the whole attempt, in seconds: looking up the server's name obeys no limit of the request."""


def find_obstacle(address: str) -> str | None:
    """Request an address, and return in one line why its server cannot be reached; None if it answers.

    Any answer counts, also an HTTP error such as 404 or a certificate that Python does not trust. The function
    takes eight seconds at most. Proxies that the environment names (`https_proxy` and its like) are used.

    Args:
        address: The address of the server, for example "https://api.wandb.ai".
    """
    outcomes: list[str | None] = []

    def request() -> None:
        outcomes.append(_request(address))

    # In a thread that is left behind: a look-up of a name can hang for minutes, and cannot be interrupted.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_ALL_S)

    if not outcomes:
        return f"no answer from {address} within {_ALL_S:.0f} s"
    return outcomes[0]


def _request(address: str) -> str | None:
    """Request an address once, and return what went wrong; None where a server answered."""
    try:
        with urllib.request.urlopen(address, timeout=_REQUEST_S):
            return None
    except urllib.error.HTTPError:
        # The server is there, and has nothing at this address.
        return None
    except (OSError, ValueError) as error:
        # A URLError is an OSError; a malformed address raises a ValueError.
        reason = getattr(error, "reason", error)

        # The server answered. The library that talks with it may trust other certificates than Python does.
        if isinstance(reason, ssl.SSLError):
            return None
        return f"{address}: {reason}"
