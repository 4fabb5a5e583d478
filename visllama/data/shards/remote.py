"""Read shards on other machines by their URL, by HTTP or fsspec, and check which URLs may be opened.

A download that fails on the way (a cut body, a busy server) raises `FailedAttempt`; `cache.py` tries again where that
helps.
"""

from __future__ import annotations

import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import fsspec.core

from visllama.errors import ConfigError

REMOTE = {
    "http": "",
    "https": "",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
}
"""The schemes of the URLs that may be opened, each with the package that fsspec needs for it, empty for none."""


class Body(NamedTuple):
    """The content of a shard while it is downloaded.

    Attributes:
        read: A function that returns the next bytes, at most as many as its argument says; `b""` at the end.
        first: The place in the shard of the first byte that `read` returns, from 0.
        total: The size of the whole shard in bytes; None where it is not known, -1 where only the end of the connection
            says that the content is over.
        stamp: Values, as the ETag, that change when the content does; equal stamps mean the same content.
    """

    read: Callable[[int], bytes]
    first: int
    total: int | None
    stamp: tuple


class FetchError(ConfigError):
    """Raised when a shard could not be downloaded or stored; the message names its URL, the reason and what to do."""


class FailedAttempt(Exception):
    """Raised when one attempt at a download failed; another one may succeed unless `final` is true.

    Args:
        problem: What went wrong, in words.
        remedy: What the user can do about it; empty where the user can do nothing.
        final: Whether another attempt would fail too.
        restart: Whether the next attempt must begin with the first byte again.
        wait_s: Seconds that the server asks to wait before the next attempt.
    """

    def __init__(
        self, problem: str, remedy: str = "", final: bool = False, restart: bool = False, wait_s: float = 0
    ) -> None:
        super().__init__(problem)
        self.remedy = remedy
        self.final = final
        self.restart = restart
        self.wait_s = wait_s


def is_remote(path: str) -> bool:
    """Return whether a path begins with a scheme of two letters or more and a colon, as a URL does."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path) is not None


def check_address(path: str) -> None:
    """Check that a path is a URL that may be opened; the network is not asked.

    Other schemes are refused, since fsspec would run commands or read local files by some of them.

    Raises:
        ConfigError: If the scheme is not in `REMOTE`, no "//" follows it, the URL is chained (`a::b`), or an HTTP URL
            holds a user or a password.
    """
    scheme, _, rest = path.partition(":")
    if scheme not in REMOTE or not rest.startswith("//"):
        reasons = {"pipe": "runs a command", "file": "is a local file: give its path alone"}
        reason = reasons.get(scheme, "is not opened")
        allowed = ", ".join(f"{name}://" for name in REMOTE)
        raise ConfigError(f"{shown(path)}: {scheme + ':'!r} {reason}. Choose from {allowed}, or give a local path")

    # An IPv6 address, in brackets, holds colons of its own.
    without_ipv6 = re.sub(r"^//\[[0-9A-Fa-f:.]+\]", "", rest)
    if "::" in without_ipv6:
        raise ConfigError(f"{shown(path)}: chained addresses (a::b) are not opened; give the shard's own address")

    host, _, _ = rest.removeprefix("//").partition("/")
    if scheme in ("http", "https") and "@" in host:
        raise ConfigError(f"{shown(path)}: no user or password in an address, please: it lands in logs")


def shown(text: str) -> str:
    """Return a text, for messages, with users, passwords and queries (`?...`) in its URLs replaced by "..."."""
    without_users = re.sub(r"//[^/@\s]*@", "//...@", text)
    # Signatures stand in an address's query.
    return re.sub(r"\?[^\s'\"]*", "?...", without_users)


class _Redirects(urllib.request.HTTPRedirectHandler):
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 lacks it

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urlsplit(newurl).scheme
        loses_encryption = (req.type, scheme) == ("https", "http")
        if scheme not in ("http", "https") or loses_encryption:
            raise FailedAttempt(f"it is redirected to {newurl}", "give the address where it lies", final=True)
        return urllib.request.Request(newurl, headers=dict(req.headers))


@lru_cache(1)
def _opener() -> urllib.request.OpenerDirector:
    """Return a client for HTTP and HTTPS of the standard library, which is always there and keeps no open session.

    The client is made once, since it loads all certificates (30 ms).
    """
    # Put together by hand: there is no handler for file:, ftp: and data:.
    opener = urllib.request.OpenerDirector()
    for name in ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPErrorProcessor", "HTTPDefaultErrorHandler"):
        handler = getattr(urllib.request, name)
        opener.add_handler(handler())

    opener.add_handler(_Redirects())
    return opener


@contextmanager
def from_http(url: str, start: int, stamp: tuple, timeout_s: float) -> Generator[Body, None, None]:
    """Open a shard on an HTTP server, and yield its content; a context manager, to be used by `with`.

    Args:
        url: The shard's URL.
        start: Number of bytes of the shard that are already on disk. If the server can continue and the shard has not
            changed, the content begins at byte `start`, which is `Body.first`; otherwise it is the whole shard, and
            `Body.first` is 0.
        stamp: The `Body.stamp` of the download that those bytes came from; `()` if `start` is 0.
        timeout_s: The longest time in seconds that the server may send nothing.

    Raises:
        FailedAttempt: If the server answers with an error status, redirects to an address that is not HTTP or from
            HTTPS to HTTP, compresses what it sends (a `Content-Encoding`), has a certificate that is not valid, or
            sends another range of bytes than was asked for.
        OSError: If the server cannot be reached, or sends nothing for `timeout_s`.
    """
    request = urllib.request.Request(
        quote(url, safe="%/:=&?~#+!$,;'@()*[]"),
        headers=_headers(start, stamp),
    )
    try:
        response = _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed_status(error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FailedAttempt(str(error.reason), "name the right certificates by SSL_CERT_FILE", final=True) from None
        raise

    with response:
        code = response.status
        encoding = response.headers.get("Content-Encoding") or "identity"
        if code not in (200, 206) or encoding.lower() != "identity":
            raise FailedAttempt(
                f"the server sends no plain file (status {code})", "let it send it unpacked", final=True
            )

        first = 0
        total = response.length
        if code == 206:
            content_range = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
            first = int(content_range[1]) if content_range else -1
            total = int(content_range[2]) if content_range else None
        elif total is None and not response.chunked:
            # The body ends where the connection does, whether it is whole or was cut.
            total = -1

        now = (response.headers.get("ETag"), response.headers.get("Last-Modified"), total)
        if code == 206 and (first, now) != (start, stamp):
            raise FailedAttempt("the file changed, or the server sends another part than was asked for", restart=True)
        yield Body(response.read1, first, total, now)


def _headers(start: int, stamp: tuple) -> dict[str, str]:
    """Return the HTTP headers that ask for a shard, or only for what is behind its first `start` bytes."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "visllama"}
    # With neither ETag nor date, nothing tells that the content is still the same: it is asked for as a whole.
    if start == 0 or not any(stamp[:2]):
        return headers

    headers["Range"] = f"bytes={start}-"
    etag, last_modified, *_ = stamp
    # A weak ETag ("W/...") may stay when bytes change, and If-Range takes none.
    is_strong = etag and not etag.startswith("W/")
    validator = etag if is_strong else last_modified
    if validator:
        headers["If-Range"] = validator
    return headers


def _failed_status(error: urllib.error.HTTPError) -> FailedAttempt:
    """Return the `FailedAttempt` to raise for a server's error status, with whether another attempt can help."""
    code = error.code
    if code in (401, 403):
        remedy = "check what gives you access"
    elif code in (404, 410):
        remedy = "check the address"
    else:
        remedy = ""

    return FailedAttempt(
        f"HTTP status {code}, {error.reason}",
        remedy,
        # A timeout, a part that cannot be had, and a server that is busy may be over at the next attempt.
        final=code < 500 and code not in (408, 416, 425, 429),
        restart=code == 416,
        wait_s=_retry_after(error.headers.get("Retry-After") or ""),
    )


def _retry_after(header: str) -> float:
    """Return the seconds to wait that a `Retry-After` header asks for, as a number or a date; 0 for anything else."""
    with suppress(ValueError, TypeError, OverflowError):
        if header.isdecimal():
            return float(header)
        return parsedate_to_datetime(header).timestamp() - time.time()
    return 0.0


@contextmanager
def from_fsspec(url: str, start: int, stamp: tuple, timeout_s: float) -> Generator[Body, None, None]:
    """Open a shard in a store that fsspec knows, and yield its content; a context manager, to be used by `with`.

    Args:
        url: The shard's URL.
        start: Number of bytes of the shard that are already on disk. If the shard has not changed, the content begins
            at byte `start`, which is `Body.first`; otherwise it is the whole shard, and `Body.first` is 0.
        stamp: The `Body.stamp` of the download that those bytes came from; `()` if `start` is 0.
        timeout_s: Not used: the file systems have limits of their own, and no common argument to set them.

    Raises:
        ConfigError: If the package for the URL's scheme is not installed.
        FailedAttempt: If the shard is not there, or may not be read. The file systems may raise other errors.
    """
    try:
        # fsspec keeps its instances by process: a fork inherits none.
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = REMOTE[url.partition(":")[0]]
        raise ConfigError(f"{shown(url)}: needs a package, `pip install {package}` ({error})") from error

    try:
        # Otherwise a second attempt would read the first one's listing.
        system.invalidate_cache()
        now = (system.ukey(path),)
        size = system.info(path)["size"]
        total = -1 if size is None else size

        with system.open(path, "rb") as file:
            # Content that has changed meanwhile is read from its start.
            first = file.seek(start if now == stamp else 0)
            yield Body(file.read, first, total, now)
    except (FileNotFoundError, PermissionError) as error:
        raise FailedAttempt(
            f"{type(error).__name__}: {error}", "check the address and your access", final=True
        ) from error
