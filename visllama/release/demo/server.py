"""Build the demo's server: the page and the API behind the guard, and a folder for uploads that is deleted after it."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from PIL import Image

from visllama.release.demo.api import add_api
from visllama.release.demo.guard import Guard, Rules
from visllama.release.demo.served import Shelf

_MAX_PORT_DIGITS = 5
"""The largest number of digits of a port in a Host header."""


@contextmanager
def upload_folder() -> Generator[Path, None, None]:
    """Use as `with upload_folder() as uploads:` to have an empty folder for gradio's uploads inside the block.

    It lies in a temporary folder, which is deleted after the block. Inside the block the environment variable
    GRADIO_TEMP_DIR names it, which gradio reads; afterwards the variable is as before.
    """
    path_before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="visllama-demo-", ignore_cleanup_errors=True) as temporary:
        uploads = Path(temporary).resolve() / "uploads"
        uploads.mkdir()

        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        try:
            yield uploads
        finally:
            if path_before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = path_before


def build_app(models: Shelf, examples: Sequence[Image.Image], uploads: Path, max_mb: float, max_queue: int) -> FastAPI:
    """Build the application with the page at `/` and the API beside it, without the guard and without serving it.

    The examples are written as PNG files beside `uploads`. Two environment variables are set that turn off gradio's
    telemetry and its history of runs.

    Args:
        models: The models that visitors may use.
        examples: Example pictures for a visitor to click; may be empty.
        uploads: The folder that `upload_folder` yields, while its block lasts.
        max_mb: The largest size of a picture's file, in MiB.
        max_queue: The largest number of events of the page that may wait.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Newer releases would keep a visitor's pictures in the browser.
    os.environ["GRADIO_RUN_HISTORY"] = "False"

    # Imported here: gradio is an extra, and reads the environment when it is imported.
    import gradio as gr

    from visllama.release.demo.exhibit import Exhibit, example_path
    from visllama.release.demo.page import CSS, FONTS, HEAD, build_page

    max_bytes = int(max_mb * 2**20)
    for index, picture in enumerate(examples):
        picture.save(example_path(uploads, index))

    blocks = build_page(Exhibit(models, list(examples), uploads, max_bytes))
    blocks.queue(max_size=max_queue, api_open=False)

    # No descriptions of the API: the guard would refuse their routes anyway.
    without_docs = {"openapi_url": None, "docs_url": None, "redoc_url": None}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_api(app, models, max_bytes)

    # Fonts of the visitor's own machine: gradio's default ones come from Google.
    theme = gr.themes.Default(font=list(FONTS), font_mono=["ui-monospace", "monospace"])

    # Nothing that needs another process, and no errors with the paths of this machine on the page.
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        show_error=False,
        max_file_size=max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
        head=HEAD,
        app_kwargs=without_docs,
    )


def own_hosts(host: str, port: int) -> Callable[[str], bool]:
    """Return a function that takes a Host header, and returns whether the header names this server.

    Accepted are `host`, the names of this machine's loopback address and, if the server listens at all addresses, this
    machine's own name and any numeric address; each with the right port. Somebody else's page can make a name point to
    this server (DNS rebinding), but no number.

    Args:
        host: The address that the server listens at, such as "127.0.0.1"; "0.0.0.0", "::" or "" are all addresses.
        port: The port that the server listens at.
    """
    names = {host.lower(), "127.0.0.1", "localhost", "::1"}
    is_everywhere = not host or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)
    # Others reach such a server by the machine's name.
    if is_everywhere:
        short_name = socket.gethostname()
        full_name = socket.getfqdn()
        names |= {short_name.lower(), full_name.lower()}

    def is_own(header: str) -> bool:
        name, _, header_port = header.rpartition(":")

        # Without a port a browser means that of HTTP. An IPv6 address has colons of its own.
        if not header_port.isdecimal():
            name = header
            header_port = "80"
        # Python refuses to read thousands of digits, with an error.
        if len(header_port) > _MAX_PORT_DIGITS or int(header_port) != port:
            return False

        name = name.lower().removeprefix("[").removesuffix("]")
        return name in names or (is_everywhere and _is_address(name))

    return is_own


def _is_address(name: str) -> bool:
    """Return whether a name is a numeric IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def make_server(app: FastAPI, rules: Rules, started: Callable[[], None]) -> uvicorn.Server:
    """Build a uvicorn server that puts the guard before an application; it does not run yet.

    Its method `run(sockets=[...])` serves until Ctrl-C, SIGTERM, or until its attribute `should_exit` is set to True.

    Args:
        app: The application of `build_app`.
        rules: The rules of the guard.
        started: A function without arguments that is called once, when the server has begun to answer requests.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn reports each open page that it cuts off as an error, which it is not.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets=sockets)

    # `proxy_headers` off: a client could name another address, and escape the limit of requests a minute.
    return Server(
        uvicorn.Config(
            Guard(app, rules),
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=2**16,
        )
    )
