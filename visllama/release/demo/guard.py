"""What stands before the page and its API: who may ask, for what, how much and how often.

gradio is made to be called from anywhere. This is a server of one address: other names of it (DNS rebinding), other
origins, routes that the page does not need, and addresses or paths in place of uploads are refused here.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from visllama.release.demo.limits import Rate
from visllama.release.demo.uploads import find_foreign_file, is_own_file

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_GRADIO = "/gradio_api"
_READ = (
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/health", f"{_GRADIO}/info",
    f"{_GRADIO}/queue/data", f"{_GRADIO}/startup-events", f"{_GRADIO}/theme.css", f"{_GRADIO}/upload_progress",
)  # fmt: skip
_READ_BELOW = ("/assets/", "/static/", "/svelte/", f"{_GRADIO}/heartbeat/", f"{_GRADIO}/file=")
_FILE = f"{_GRADIO}/file="
_JOIN, _UPLOAD = f"{_GRADIO}/queue/join", f"{_GRADIO}/upload"
_WRITTEN = (_JOIN, _UPLOAD, f"{_GRADIO}/cancel", f"{_GRADIO}/reset", "/caption", "/chat")
_MODEL_WORK = ("/caption", "/chat", _JOIN)
_SLACK_BYTES = 64 * 2**10
"""Room for what stands around the files of a request."""
_JOIN_BYTES = 2**20
_MOST_DISCARDED = 4
"""Times the largest size of a file: what is larger by no more is read to its end before it is refused."""
_CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self' data: blob:",
        "media-src 'self' data: blob:", "worker-src 'self' blob:", "object-src 'none'", "base-uri 'self'",
        "form-action 'self'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Refused(Exception):
    """A request that is not served.

    Args:
        status: The HTTP status.
        reason: What the client is told.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


@dataclass(frozen=True)
class Rules:
    """What is served.

    Attributes:
        is_own_host: Whether a Host header names this server.
        max_bytes: The largest size of a file.
        requests_per_minute: Model work of one client.
        uploads: The folder that uploads lie in.
        user: The name of HTTP Basic authentication; None asks nobody.
        password: Its password.
        body_timeout_s: The longest time that the body of a request may take to come.
    """

    is_own_host: Callable[[str], bool]
    max_bytes: int
    requests_per_minute: int
    uploads: str
    user: str | None = None
    password: str = ""
    body_timeout_s: float = 30.0


class Guard:
    """ASGI middleware that serves only what the rules allow.

    Args:
        app: What is guarded.
        rules: The rules.
    """

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._rate = Rate(rules.requests_per_minute, 60)

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        has_begun = False

        async def send_safe(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                kept = [(name, value) for name, value in message.get("headers", []) if name.decode() not in _HEADERS]
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": kept + added}
            await send(message)

        try:
            self._check(scope)
            body = await self._read_body(scope, receive)
            if scope["path"] == _JOIN:
                self._check_join(body, Headers(scope=scope)["host"])
            await self.app(scope, _replay(body, receive), send_safe)
        except Refused as refused:
            if has_begun:
                raise
            if refused.status == 413:
                await self._discard(scope, receive)
            # "detail" is where gradio's page looks for it.
            content = {"error": refused.reason, "detail": refused.reason}
            answer = JSONResponse(content, refused.status, {"connection": "close", **refused.headers})
            await answer(scope, receive, send_safe)

    def _check(self, scope: Message) -> None:
        """Refuse a request for what its head says."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.rules.is_own_host(hosts[0]):
            raise Refused(421, "this server has another name: ask it by the address that it printed, with its port")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{hosts[0]}".lower():
            raise Refused(403, "pages of other origins may not ask this server")
        self._check_user(headers.get("authorization"))
        self._check_route(scope["method"], scope["path"])
        if scope["method"] == "POST" and scope["path"] in _MODEL_WORK:
            client = (scope.get("client") or ("",))[0]
            wait_s = self._rate.wait_s(client)
            if wait_s > 0:
                reason = f"more than {self.rules.requests_per_minute} requests a minute: wait {wait_s} s"
                raise Refused(429, reason, {"retry-after": str(wait_s)})

    def _check_user(self, authorization: str | None) -> None:
        if self.rules.user is None:
            return
        wanted = base64.b64encode(f"{self.rules.user}:{self.rules.password}".encode())
        kind, _, given = (authorization or "").partition(" ")
        is_same = hmac.compare_digest(given.strip().encode(), wanted)
        if kind.lower() != "basic" or not is_same:
            raise Refused(
                401, "give user and password", {"www-authenticate": 'Basic realm="visllama", charset="UTF-8"'}
            )

    def _check_route(self, method: str, path: str) -> None:
        if method in ("GET", "HEAD"):
            is_known = path in _READ or path.startswith(_READ_BELOW)
            if path.startswith(_FILE):
                is_known = is_own_file(path.removeprefix(_FILE), self.rules.uploads)
        else:
            is_known = method == "POST" and path.removesuffix("/") in _WRITTEN and not path.endswith("/")
        if not is_known:
            raise Refused(404, "there is nothing here")

    async def _read_body(self, scope: Message, receive: Callable) -> bytes:
        """Read a request's body whole: no larger, and no slower, than it may be."""
        if scope["method"] in ("GET", "HEAD"):
            return b""
        most = self._largest(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdigit() or int(declared) > most:
            raise Refused(413, f"too large: at most {self.rules.max_bytes / 2**20:g} MB")
        try:
            return await asyncio.wait_for(_collect(receive, most, self.rules.max_bytes), self.rules.body_timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, "the request came too slowly") from None

    async def _discard(self, scope: Message, receive: Callable) -> None:
        """Read on over what is refused, so that a client that sends first sees the answer, and no broken connection."""
        declared = Headers(scope=scope).get("content-length", "")
        if not declared.isdigit() or int(declared) > _MOST_DISCARDED * self.rules.max_bytes:
            return
        with suppress(TimeoutError, asyncio.TimeoutError, Refused):
            await asyncio.wait_for(_collect(receive, 0, 0, keeps=False), self.rules.body_timeout_s)

    def _largest(self, path: str) -> int:
        """Return the largest size of a request's body, in bytes."""
        if path == _UPLOAD:
            return self.rules.max_bytes + _SLACK_BYTES
        if path in ("/caption", "/chat"):
            return self.rules.max_bytes * 4 // 3 + _SLACK_BYTES
        return _JOIN_BYTES

    def _check_join(self, body: bytes, host: str) -> None:
        """Refuse an event of the page whose files are no uploads of ours: gradio itself would fetch some of them."""
        try:
            event = json.loads(body)
            foreign = find_foreign_file(event, self.rules.uploads, host)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None
        if foreign is not None:
            raise Refused(400, foreign)


async def _collect(receive: Callable, most: int, max_bytes: int, keeps: bool = True) -> bytes:
    """Read a body to its end; unless `keeps`, nothing of it is kept, and nothing is too much."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")
        body += message.get("body", b"") if keeps else b""
        more = message.get("more_body", False)
        if len(body) > most:
            raise Refused(413, f"too large: at most {max_bytes / 2**20:g} MB")
    return bytes(body)


def _replay(body: bytes, receive: Callable) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that hands on a body that was read already, and then what comes."""
    is_handed_on = False

    async def replay() -> Message:
        nonlocal is_handed_on
        if is_handed_on:
            return await receive()
        is_handed_on = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
