"""A stand-in for the Hugging Face hub on this machine that takes uploads: `with ReceivingHub() as hub: hub.address`."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class ReceivingHub:
    """Take what the hub's client uploads: small text files in the commit, all others by git LFS.

    Attributes:
        created: What was asked of each repository that is to be made.
        files: The content of each committed file, by its path.
        tokens: The tokens that requests to the hub came with.
        status: The HTTP status of all answers, 200 where it works.
    """

    def __init__(self) -> None:
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.objects: dict[str, bytes] = {}
        self.status = 200

    def __enter__(self) -> ReceivingHub:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: ReceivingHub

    def log_message(self, *_) -> None:
        pass

    def do_PUT(self) -> None:
        """Keep an LFS object; the store is told no token."""
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        """Make a repository, say how files are to come, and take a commit."""
        self.hub.tokens.add((self.headers["Authorization"] or "").removeprefix("Bearer ") or None)
        path, body = self.path.partition("?")[0], self._body()
        if path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self._answer({"url": f"{self.hub.address}/user/name"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/models/user/name/preupload/main":
            self._answer({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path == "/user/name.git/info/lfs/objects/batch":
            objects = [self._to_upload(one) for one in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif path == "/api/models/user/name/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.hub.files[value["path"]] = self.hub.objects[value["oid"]]
            commit = {"commitUrl": f"{self.hub.address}/user/name/commit/{COMMIT}", "commitOid": COMMIT}
            self._answer(commit)
        else:
            self.send_error(404)

    def _to_upload(self, one: dict) -> dict:
        action = {"href": f"{self.hub.address}/store/{one['oid']}"}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": action}}

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(self.hub.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _mode(path: str) -> dict:
    mode = "regular" if path.endswith((".md", ".json", ".yaml")) else "lfs"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
