"""A stand-in for the Hugging Face hub on this machine, with one model: `with Hub(folder) as hub: hub.address`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serve the files of a folder under any model's name.

    Args:
        folder: What the model's files are.
        readers: A file's body begins to be sent when so many have asked for its size: as many are then about to load it.

    Attributes:
        requests: The number of requests by method and file; a path of the API counts as its last part.
    """

    def __init__(self, folder: Path, readers: int = 1) -> None:
        self.folder, self.readers = folder, readers
        self.requests: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Hub:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait_for_readers(self, name: str) -> None:
        """Wait until all have asked for a file's size, or long enough."""
        give_up = time.monotonic() + 30
        while self.requests["HEAD", name] < self.readers and time.monotonic() < give_up:
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        """Tell a file's size, commit and hash."""
        self._answer()

    def do_GET(self) -> None:
        """Send a file."""
        body = self._answer()
        if body is not None:
            self.wfile.write(body)

    def _answer(self) -> bytes | None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        self.hub.requests[self.command, name] += 1
        file = self.hub.folder / name
        body = file.read_bytes() if "/resolve/" in path and file.is_file() else None
        self.send_response(404 if body is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and name.endswith(".safetensors"):
            self.hub.wait_for_readers(name)
        return body
