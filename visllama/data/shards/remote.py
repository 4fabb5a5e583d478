"""Shards that lie elsewhere: which addresses are opened, and how their bytes come.

What fails on the way (a cut body, a busy server) is a `FailedAttempt`; `cache.py` makes another one where that helps.
"""

from __future__ import annotations

import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, urlsplit

import fsspec.core

from visllama.errors import ConfigError

REMOTE = {"http": "", "https": "", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
          "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oci": "ocifs", "oss": "ossfs"}  # fmt: skip
"""The schemes that may be opened, each with the package that fsspec needs for it."""

Body = tuple[Callable[[int], bytes], int, "int | None", tuple]
"""A reader, where its first byte stands, bytes in all (None: untold, -1: it ends where the connection does), and what
changes when the content does."""


class FetchError(ConfigError):
    """A shard could not be downloaded; the message names it, the last attempt's fault, and what to do."""


class FailedAttempt(Exception):
    """What went wrong at one attempt: `final` ends them all, `restart` gives up the bytes already there."""

    def __init__(self, what: str, do: str = "", final: bool = False, restart: bool = False, wait_s: float = 0) -> None:
        super().__init__(what)
        self.do, self.final, self.restart, self.wait_s = do, final, restart, wait_s


def is_remote(path: str) -> bool:
    """Return whether a path is an address ("scheme:...")."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path) is not None


def check_address(path: str) -> None:
    """Refuse an address that we do not open: one that runs commands, reads local files, or chains file systems.

    Raises:
        ConfigError: Its scheme is not one of `REMOTE`, it is chained, or it holds a password.
    """
    scheme, _, rest = path.partition(":")
    if scheme not in REMOTE or not rest.startswith("//"):
        kind = {"pipe": "runs a command", "file": "is a local file: give its path alone"}.get(scheme, "is not opened")
        allowed = ", ".join(f"{name}://" for name in REMOTE)
        raise ConfigError(f"{shown(path)}: {scheme + ':'!r} {kind}. Choose from {allowed}, or give a local path")
    if "::" in re.sub(r"^//\[[0-9A-Fa-f:.]+\]", "", rest):  # the brackets hold an IPv6 address
        raise ConfigError(f"{shown(path)}: chained addresses (a::b) are not opened; give the shard's own address")
    if scheme in ("http", "https") and "@" in rest[2:].partition("/")[0]:
        raise ConfigError(f"{shown(path)}: no user or password in an address, please: it lands in logs")


def shown(text: str) -> str:
    """Return a text without what is secret in its addresses: users, passwords, signatures."""
    return re.sub(r"\?[^\s'\"]*", "?...", re.sub(r"//[^/@\s]*@", "//...@", text))


class _Redirects(urllib.request.HTTPRedirectHandler):
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 lacks it

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type, scheme) == ("https", "http"):
            raise FailedAttempt(f"it is redirected to {newurl}", "give the address where it lies", final=True)
        return urllib.request.Request(newurl, headers=dict(req.headers))


@lru_cache(1)
def _opener() -> urllib.request.OpenerDirector:
    # The standard library's client: certainly installed, no session that a fork inherits, bodies are not decoded. Put
    # together by hand: file:, ftp: and data: have no handler. Kept, since it loads all certificates (30 ms).
    opener = urllib.request.OpenerDirector()
    for name in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPErrorProcessor", "HTTPDefaultErrorHandler"):
        opener.add_handler(getattr(urllib.request, name)())
    opener.add_handler(_Redirects())
    return opener


@contextmanager
def from_http(url: str, start: int, stamp: tuple, timeout_s: float) -> Iterator[Body]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "visllama"}
    if start and any(stamp[:2]):  # with neither ETag nor date, nothing tells that the content is still the same
        headers["Range"] = f"bytes={start}-"
        if strong := stamp[1] if (stamp[0] or "W/").startswith("W/") else stamp[0]:
            headers["If-Range"] = strong
    request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    try:
        response = _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        code, wait_s = error.code, _retry_after(error.headers.get("Retry-After") or "")
        do = "check what gives you access" if code in (401, 403) else "check the address" if code in (404, 410) else ""
        final = code < 500 and code not in (408, 416, 425, 429)
        raise FailedAttempt(
            f"HTTP status {code}, {error.reason}", do, final, restart=code == 416, wait_s=wait_s
        ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FailedAttempt(str(error.reason), "name the right certificates by SSL_CERT_FILE", final=True) from None
        raise
    with response:
        first, total, code = 0, response.length, response.status
        if code not in (200, 206) or (response.headers.get("Content-Encoding") or "identity").lower() != "identity":
            raise FailedAttempt(
                f"the server sends no plain file (status {code})", "let it send it unpacked", final=True
            )
        if code == 206:
            found = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
            first, total = (int(found[1]), int(found[2])) if found else (-1, None)
        elif total is None and not response.chunked:
            total = -1  # the body ends where the connection does, be it cut or not
        now = (response.headers.get("ETag"), response.headers.get("Last-Modified"), total)
        if code == 206 and (first, now) != (start, stamp):
            raise FailedAttempt("the file changed, or the server sends another part than was asked for", restart=True)
        yield response.read1, first, total, now


def _retry_after(header: str) -> float:
    """Return the seconds that the server wants us to wait; 0 where it says nothing that we understand."""
    with suppress(ValueError, TypeError, OverflowError):
        return float(header) if header.isdigit() else parsedate_to_datetime(header).timestamp() - time.time()
    return 0.0


@contextmanager
def from_fsspec(url: str, start: int, stamp: tuple, timeout_s: float) -> Iterator[Body]:
    try:  # `timeout_s` has no name that all file systems know: each has a limit of its own
        system, path = fsspec.core.url_to_fs(url)  # fsspec keeps instances by process: none is inherited by a fork
    except (ImportError, ValueError) as error:
        package = REMOTE[url.partition(":")[0]]
        raise ConfigError(f"{shown(url)}: needs a package, `pip install {package}` ({error})") from error
    try:
        system.invalidate_cache()  # else a second attempt reads the first one's listing
        now, total = (system.ukey(path),), system.info(path)["size"]
        total = -1 if total is None else total
        with system.open(path, "rb") as file:
            first = file.seek(start if now == stamp else 0)
            yield file.read, first, total, now
    except (FileNotFoundError, PermissionError) as error:
        raise FailedAttempt(
            f"{type(error).__name__}: {error}", "check the address and your access", final=True
        ) from error
