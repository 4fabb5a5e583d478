"""Whether a server can be reached, asked for a few seconds and no longer."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request

_REQUEST_S = 4.0
_ALL_S = 8.0
"""Most seconds of the whole attempt: the name of the server is looked up with no time limit of ours."""


def find_obstacle(address: str) -> str | None:
    """Return why a web server cannot be reached; None where it answers, whatever it says.

    Proxies of the environment are used.

    Args:
        address: The address of the server, for example "https://api.wandb.ai".
    """
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(_ask(address)), daemon=True)
    thread.start()
    thread.join(_ALL_S)
    return outcome[0] if outcome else f"no answer from {address} within {_ALL_S:.0f} s"


def _ask(address: str) -> str | None:
    try:
        with urllib.request.urlopen(address, timeout=_REQUEST_S):
            return None
    except urllib.error.HTTPError:  # it is there, and has nothing at this place
        return None
    except (OSError, ValueError) as error:  # URLError is an OSError, and an address may be none
        reason = getattr(error, "reason", error)
        # Whose certificates are believed, the library that talks with it decides.
        return None if isinstance(reason, ssl.SSLError) else f"{address}: {reason}"
