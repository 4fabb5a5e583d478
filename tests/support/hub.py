"""A stand-in for the Hugging Face hub on this machine, with one model: `with Hub(folder) as hub: hub.address`."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serve the files of a folder under any model's name.

    Args:
        folder: What the model's files are.
        readers: A file's body begins to be sent when so many have asked for its size: as many are then about to load it.

    Attributes:
        requests: The number of requests by method and file; a path of the API counts as its last part.
        commits: The folder of each commit.
        names: The commit that each branch or tag is at.
        refusals: An HTTP status and the hub's word for it, which answers all requests of a repository's files, by its name.
    """

    def __init__(self, folder: Path, readers: int = 1) -> None:
        self.readers = readers
        self.requests: Counter[tuple[str, str]] = Counter()
        self.commits, self.names = {COMMIT: folder}, {"main": COMMIT}
        self.refusals: dict[str, tuple[int, str]] = {}

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
        """Send a file, or what the model's commit is."""
        body = self._answer()
        if body is not None:
            self.wfile.write(body)

    def _answer(self) -> bytes | None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        self.hub.requests[self.command, name] += 1
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        named = unquote((asked or info)[2] or "main") if asked or info else "main"
        commit = self.hub.names.get(named, named)
        status, error, body = 404, "EntryNotFound", None
        if asked and asked[1] in self.hub.refusals:
            status, error = self.hub.refusals[asked[1]]
        elif commit not in self.hub.commits:
            error = "RevisionNotFound"
        elif info:
            body = json.dumps({"id": "user/name", "sha": commit, "siblings": [], "tags": []}).encode()
        elif asked and (self.hub.commits[commit] / asked[3]).is_file():
            body = (self.hub.commits[commit] / asked[3]).read_bytes()
        self.send_response(status if body is None else 200)
        self.send_header("X-Repo-Commit", commit)
        if body is None:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and name.endswith(".safetensors"):
            self.hub.wait_for_readers(name)
        return body
