"""Check each HTTP request before it reaches the page or its API: who may ask, for what, how much and how often.

gradio is made to be called from anywhere. The demo is a server of one address. The guard refuses requests under other
names (DNS rebinding), requests that pages of other origins send, routes that the page does not need, and web addresses
or paths in the place of uploads.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from visllama.release.demo.limits import Rate
from visllama.release.demo.uploads import find_foreign_file, is_own_file

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
"""The types of ASGI."""

_GRADIO = "/gradio_api"
_FILE = f"{_GRADIO}/file="
"""The route of uploaded files, which the path of a file follows."""
_JOIN = f"{_GRADIO}/queue/join"
"""The route by which the page sends its events."""
_UPLOAD = f"{_GRADIO}/upload"
_READ = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/health",
    f"{_GRADIO}/info",
    f"{_GRADIO}/queue/data",
    f"{_GRADIO}/startup-events",
    f"{_GRADIO}/theme.css",
    f"{_GRADIO}/upload_progress",
)
"""The paths that may be read."""
_READ_BELOW = ("/assets/", "/static/", "/svelte/", f"{_GRADIO}/heartbeat/")
"""The beginnings of further paths that may be read."""
_WRITTEN = (_JOIN, _UPLOAD, f"{_GRADIO}/cancel", f"{_GRADIO}/reset", "/caption", "/chat")
"""The paths that may be posted to."""
_MODEL_WORK = ("/caption", "/chat", _JOIN)
"""The paths whose requests keep a model busy, and are limited for each client."""
_SLACK_BYTES = 64 * 2**10
"""Room for the other parts of a request that holds files."""
_JOIN_BYTES = 2**20
"""The largest size of an event of the page, which names uploads and holds none."""
_MOST_DIGITS = 20
"""The largest number of digits of a Content-Length that is read."""
_MAX_DISCARDED = 4
"""A refused body of at most this many times the largest file is read to its end before the answer."""
_CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
"""The sources that a browser may load from: this server alone, and the scripts and styles inside gradio's page."""
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Refused(Exception):
    """Raised when a request is not served; the guard turns it into an HTTP answer.

    Args:
        status: The HTTP status of the answer, such as 403.
        reason: The message for the client.
        headers: Further headers of the answer; None is none.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


@dataclass(frozen=True)
class Rules:
    """The rules by which the guard passes on or refuses a request.

    Attributes:
        is_own_host: A function that returns whether a Host header names this server.
        max_bytes: The largest size of a picture's file, in bytes.
        requests_per_minute: The largest number of requests that run a model, in a minute and for each client's address.
        uploads: The folder in which gradio keeps uploaded files.
        user: The user name of HTTP Basic authentication; None asks nobody for a password.
        password: The password of HTTP Basic authentication, used if there is a user.
        body_timeout_s: The longest time that the body of a request may take to arrive, in seconds.
    """

    is_own_host: Callable[[str], bool]
    max_bytes: int
    requests_per_minute: int
    uploads: str
    user: str | None = None
    password: str = ""
    body_timeout_s: float = 30.0


class Guard:
    """ASGI middleware that passes on only the requests that the rules allow, and answers the others with an error.

    A refusal is JSON with its message under "error" and "detail". Headers that make a browser load from this server
    alone are added to each answer. Web sockets are closed.

    Args:
        app: The ASGI application behind the guard.
        rules: The rules.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules = rules
        self._rate = Rate(rules.requests_per_minute, 60)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        # The page uses no web sockets.
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        has_begun = False

        # The guard's own refusals get the headers too.
        async def send_safe(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message = {**message, "headers": _with_safe_headers(message.get("headers", []))}
            await send(message)

        try:
            self._check(scope)
            body = await self._read_body(scope, receive)
            if scope["path"] == _JOIN:
                self._check_join(body, Headers(scope=scope)["host"])
            await self.app(scope, _replay(body, receive), send_safe)
        except Refused as refused:
            # An answer that has begun cannot become another one.
            if has_begun:
                raise
            if refused.status == 413:
                await self._discard(scope, receive)

            # gradio's page looks for the message at "detail".
            content = {"error": refused.reason, "detail": refused.reason}
            answer = JSONResponse(content, refused.status, {"connection": "close", **refused.headers})
            await answer(scope, receive, send_safe)

    def _check(self, scope: Message) -> None:
        """Check the head of a request (its method, path and headers), and count it if it runs a model.

        Raises:
            Refused: If the request asks by another name, comes from another origin, lacks the password, asks for a
                route that is not served, or is one too many.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.rules.is_own_host(hosts[0]):
            raise Refused(421, "this server has another name: ask it by the address that it printed, with its port")

        # Programs send no origin; a browser sends that of the page which asks.
        scheme = scope["scheme"]
        own_origin = f"{scheme}://{hosts[0]}"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != own_origin.lower():
            raise Refused(403, "pages of other origins may not ask this server")

        # The user first: a stranger learns nothing about routes. The rate last: no other refusal counts as a request.
        method = scope["method"]
        path = scope["path"]
        self._check_user(headers.get("authorization"))
        self._check_route(method, path)
        if method == "POST" and path in _MODEL_WORK:
            self._check_rate(scope)

    def _check_user(self, authorization: str | None) -> None:
        """Check the user name and the password in the Authorization header of a request; None is a missing header.

        Raises:
            Refused: If the rules have a user, and the name or the password is missing or wrong.
        """
        if self.rules.user is None:
            return

        user_and_password = f"{self.rules.user}:{self.rules.password}"
        expected = base64.b64encode(user_and_password.encode())
        kind, _, credentials = (authorization or "").partition(" ")
        credentials = credentials.strip()

        # Compared in a time that does not depend on how much of the password is right.
        is_same = hmac.compare_digest(credentials.encode(), expected)
        if kind.lower() != "basic" or not is_same:
            challenge = {"www-authenticate": 'Basic realm="visllama", charset="UTF-8"'}
            raise Refused(401, "give user and password", challenge)

    def _check_route(self, method: str, path: str) -> None:
        """Check that a method and a path are among those that the page and the API need.

        Raises:
            Refused: If they are not.
        """
        if method not in ("GET", "HEAD"):
            is_served = method == "POST" and path in _WRITTEN
        elif path.startswith(_FILE):
            is_served = is_own_file(path.removeprefix(_FILE), self.rules.uploads)
        else:
            is_served = path in _READ or path.startswith(_READ_BELOW)

        # 404 for all of them: a client learns nothing about routes of gradio's that are there and not served.
        if not is_served:
            raise Refused(404, "there is nothing here")

    def _check_rate(self, scope: Message) -> None:
        """Count a request that runs a model.

        Raises:
            Refused: If the client's address has sent too many of them in the last minute.
        """
        address = scope.get("client") or ("",)
        wait_s = self._rate.wait_s(address[0])
        if wait_s > 0:
            reason = f"more than {self.rules.requests_per_minute} requests a minute: wait {wait_s} s"
            raise Refused(429, reason, {"retry-after": str(wait_s)})

    async def _read_body(self, scope: Message, receive: Receive) -> bytes:
        """Return the whole body of a request; it is empty for GET and HEAD.

        Raises:
            Refused: If the body is too large, comes too slowly or breaks off.
        """
        if scope["method"] in ("GET", "HEAD"):
            return b""

        # A client may declare no length, or a wrong one: `_collect` counts for itself.
        most = self._largest(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        if _length(declared) > most:
            raise _too_large(self.rules.max_bytes)

        collecting = _collect(receive, most, self.rules.max_bytes)
        try:
            return await asyncio.wait_for(collecting, self.rules.body_timeout_s)
        except (TimeoutError, asyncio.TimeoutError):  # pyrefly: ignore[unreachable-except-clause]  two before 3.11
            raise Refused(408, "the request came too slowly") from None

    async def _discard(self, scope: Message, receive: Receive) -> None:
        """Read and drop the rest of a refused request: many clients read an answer only when they have sent everything.

        A body that declares much more than the largest file is not read.
        """
        declared = Headers(scope=scope).get("content-length", "")
        if _length(declared) > _MAX_DISCARDED * self.rules.max_bytes:
            return

        collecting = _collect(receive, 0, 0, keeps=False)
        with suppress(TimeoutError, asyncio.TimeoutError, Refused):
            await asyncio.wait_for(collecting, self.rules.body_timeout_s)

    def _largest(self, path: str) -> int:
        """Return the largest size that the body of a request to a path may have, in bytes."""
        if path == _UPLOAD:
            return self.rules.max_bytes + _SLACK_BYTES
        # Base64 writes three bytes as four characters.
        if path in ("/caption", "/chat"):
            return self.rules.max_bytes * 4 // 3 + _SLACK_BYTES
        return _JOIN_BYTES

    def _check_join(self, body: bytes, host: str) -> None:
        """Check that an event of the page names no files but uploads; gradio itself would fetch some others.

        Args:
            body: The body of the request, the event as JSON.
            host: The request's Host header.

        Raises:
            Refused: If a file is no upload, or the body is no JSON.
        """
        try:
            event = json.loads(body)
            problem = find_foreign_file(event, self.rules.uploads, host)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None

        if problem is not None:
            raise Refused(400, problem)


def _with_safe_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with those of the guard added; the latter replace any of the same name."""
    all_headers = [(name, value) for name, value in headers if name.decode() not in _HEADERS]
    for name, value in _HEADERS.items():
        all_headers.append((name.encode(), value.encode()))
    return all_headers


def _too_large(max_bytes: int) -> Refused:
    """Return the refusal of a body that is too large; its message names the largest size of a file, in MiB."""
    max_mb = max_bytes / 2**20
    return Refused(413, f"too large: at most {max_mb:g} MB")


def _length(declared: str) -> float:
    """Return the number of bytes that a Content-Length header declares; infinity if it is no number."""
    # Python refuses to read thousands of digits, and a superscript is a digit that `int` does not know.
    is_number = declared.isdecimal() and len(declared) <= _MOST_DIGITS
    return int(declared) if is_number else math.inf


async def _collect(receive: Receive, most: int, max_bytes: int, keeps: bool = True) -> bytes:
    """Read the body of a request to its end, and return it.

    Args:
        receive: The function of ASGI that returns the next message.
        most: The largest size of the body, in bytes.
        max_bytes: The largest size of a file, in bytes, which the error message names.
        keeps: Whether the body is kept. If not, an empty one is returned, and no size is too large.

    Raises:
        Refused: If the body is too large, or breaks off.
    """
    body = bytearray()
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")

        if keeps:
            body += message.get("body", b"")

        has_more = message.get("more_body", False)
        if len(body) > most:
            raise _too_large(max_bytes)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` function of ASGI whose first message is a body that was read already.

    The messages after it are those of `receive`.
    """
    is_returned = False

    async def replay() -> Message:
        nonlocal is_returned
        if is_returned:
            return await receive()
        is_returned = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
