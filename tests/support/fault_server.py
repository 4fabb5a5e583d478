"""A web server on this machine that fails as told: `with FaultServer(folder) as server: server.fail("/a.tar", Cut(9))`."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """How one answer goes wrong; by itself nothing does.

    Args:
        code: Another status, without a body (403, 404, 429, 503).
        retry_after: That header.
        location: Where a redirect leads.
        length: What Content-Length claims beyond the truth; may be negative; None leaves the header out.
        ignore_range: Whether the whole body is sent though a part was asked for.
        encoding: What Content-Encoding claims.
        after: Bytes of the body that are sent before `seconds` pass or the connection ends; None sends them all.
        seconds: How long the server is silent there; then it goes on.
        end: Whether the connection ends there; "reset" sends a TCP reset.
        pause_s: Seconds between two pieces of the body.
        then: What the file holds from then on.
        chunked: Whether the body comes in two chunks, without a Content-Length; `after` then counts their frames too.
    """

    code: int | None = None
    retry_after: str | None = None
    location: str | None = None
    length: int | None = 0
    ignore_range: bool = False
    encoding: str | None = None
    after: int | None = None
    seconds: float = 0
    end: str = ""
    pause_s: float = 0
    then: bytes | None = None
    chunked: bool = False


def Status(code: int, retry_after: str | None = None) -> Fault:
    """Answer with this status and no body."""
    return Fault(code=code, retry_after=retry_after)


def Cut(after: int, then: bytes | None = None) -> Fault:
    """End the connection after so many bytes, with the right Content-Length; `then` replaces the file."""
    return Fault(after=after, end="close", then=then)


def Reset(after: int = 0) -> Fault:
    """Reset the connection after so many bytes."""
    return Fault(after=after, end="reset")


def Stall(after: int, seconds: float) -> Fault:
    """Be silent for so many seconds after so many bytes, then go on."""
    return Fault(after=after, seconds=seconds)


def Drip(pause_s: float) -> Fault:
    """Send the body in 20 pieces with a pause before each."""
    return Fault(pause_s=pause_s)


def Length(by: int | None) -> Fault:
    """Claim a Content-Length that is wrong by so many bytes; None: claim none."""
    return Fault(length=by)


def Redirect(location: str, code: int = 302) -> Fault:
    """Send the client elsewhere."""
    return Fault(code=code, location=location)


def Chunked(after: int | None = None) -> Fault:
    """Send the body in two chunks without Content-Length, all of it or so many bytes."""
    return Fault(chunked=True, after=after, end="close" if after is not None else "")


def WholeBody() -> Fault:
    """Ignore Range."""
    return Fault(ignore_range=True)


class FaultServer:
    """Serve a folder on 127.0.0.1 with ETag, Last-Modified and Range, but for the faults asked for.

    Args:
        folder: What is served.
        stamps: Whether answers have ETag and Last-Modified.

    Attributes:
        requests: The number of requests by path.
        log: The path and the Range header (or None) of each request.
        files: Bytes by path that are served instead of the folder's.
    """

    def __init__(self, folder: str | Path, stamps: bool = True) -> None:
        self.folder, self.stamps = Path(folder).resolve(), stamps
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.log: list[tuple[str, str | None]] = []
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> FaultServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        """Return the address of a path, which begins with a slash."""
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def fail(self, path: str, fault: Fault, times: int = 1) -> None:
        """Let the next so many answers for a path go wrong; faults of several calls follow one another."""
        with self._lock:
            self._faults[path] += [fault] * times

    def take(self, path: str, range_header: str | None) -> Fault:
        """Count a request and give its fault."""
        with self._lock:
            self.requests[path] += 1
            self.log.append((path, range_header))
            return self._faults[path].pop(0) if self._faults[path] else Fault()

    def content(self, path: str) -> bytes | None:
        """Return the bytes of a path, None if there is no such file."""
        if path in self.files:
            return self.files[path]
        file = (self.folder / unquote(path).lstrip("/")).resolve()
        return file.read_bytes() if file.is_relative_to(self.folder) and file.is_file() else None

    def wait(self, seconds: float) -> None:
        """Be silent, but not beyond the server's end."""
        self._closing.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        """Answer, well or ill."""
        owner, path, asked = self.owner, urlsplit(self.path).path, self.headers.get("Range")
        fault, body = owner.take(path, asked), owner.content(path)
        if fault.then is not None:
            owner.files[path] = fault.then
        code = fault.code or (404 if body is None else 200)
        headers = {"Retry-After": fault.retry_after, "Location": fault.location, "Content-Encoding": fault.encoding}
        if code == 200:
            total, tag = len(body), f'"{hashlib.sha1(body).hexdigest()}"'
            if owner.stamps:
                headers |= {"ETag": tag, "Last-Modified": formatdate(date_of(body), usegmt=True)}
            found = re.fullmatch(r"bytes=(\d+)-", asked or "")
            if (
                found
                and not fault.ignore_range
                and self.headers.get("If-Range", tag) in (tag, headers.get("Last-Modified"))
            ):
                code, body = 206, body[int(found[1]) :]
                headers["Content-Range"] = f"bytes {found[1]}-{total - 1}/{total}"
        else:
            body = b""
        if fault.chunked:
            half = len(body) // 2
            frames = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:half], body[half:], b"")]
            body, headers["Transfer-Encoding"] = b"".join(frames), "chunked"
        headers["Content-Length"] = None if fault.length is None or fault.chunked else str(len(body) + fault.length)
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        try:
            self._send(body, fault)
        except OSError:  # the client has gone, as it may
            self.close_connection = True

    def _send(self, body: bytes, fault: Fault) -> None:
        first = len(body) if fault.after is None else fault.after
        step = max(1, len(body) // 20) if fault.pause_s else max(1, first)
        for at in range(0, first, step):
            self.owner.wait(fault.pause_s)
            self.wfile.write(body[at : min(at + step, first)])
        if fault.end == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif not fault.end and fault.after is not None:
            self.owner.wait(fault.seconds)
            self.wfile.write(body[first:])


def date_of(body: bytes) -> int:
    """Return a content its own date, of whole seconds."""
    return 10**9 + int(hashlib.sha1(body).hexdigest()[:7], 16)
