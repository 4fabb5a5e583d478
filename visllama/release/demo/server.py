"""The server: the page and the API behind the guard, with a folder for uploads that ends when it does."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from PIL import Image

from visllama.release.demo.api import add_api
from visllama.release.demo.guard import Guard, Rules
from visllama.release.demo.served import Shelf


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Yield a folder for gradio's uploads, inside a temporary one that is deleted at the end.

    gradio reads its place from the environment; it is set back at the end.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="visllama-demo-", ignore_cleanup_errors=True) as temporary:
        uploads = Path(temporary).resolve() / "uploads"
        uploads.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        try:
            yield uploads
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def build_app(models: Shelf, examples: Sequence[Image.Image], uploads: Path, max_mb: float, max_queue: int) -> FastAPI:
    """Build the page and the API, unguarded.

    Args:
        models: The models.
        examples: Pictures that are ready to be clicked.
        uploads: The folder of `upload_folder`.
        max_mb: The largest size of a file, in MiB.
        max_queue: The largest number of events of the page that wait.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # newer ones would keep a visitor's pictures in the browser
    import gradio as gr  # here: it is an extra, and reads the environment when it is imported

    from visllama.release.demo.exhibit import Exhibit, example_path
    from visllama.release.demo.page import CSS, FONTS, HEAD, build_page

    max_bytes = int(max_mb * 2**20)
    for index, picture in enumerate(examples):
        picture.save(example_path(uploads, index))
    blocks = build_page(Exhibit(models, list(examples), uploads, max_bytes))
    blocks.queue(max_size=max_queue, api_open=False)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_api(app, models, max_bytes)
    theme = gr.themes.Default(font=list(FONTS), font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], show_error=False, max_file_size=max_bytes,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, theme=theme, css=CSS, head=HEAD,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    )  # fmt: skip


def own_hosts(host: str, port: int) -> Callable[[str], bool]:
    """Return a function that knows the Host headers by which this server is meant.

    A server of all addresses takes any that is a number: a page elsewhere can have a name point to it, and not that.
    """
    names = {host.lower(), "127.0.0.1", "localhost", "::1"}
    is_everywhere = not host or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)
    if is_everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_own(header: str) -> bool:
        name, _, given_port = header.rpartition(":")
        if not given_port.isdigit():
            name, given_port = header, "80"
        name = name.lower().removeprefix("[").removesuffix("]")
        return int(given_port) == port and (name in names or (is_everywhere and _is_address(name)))

    return is_own


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def make_server(app: FastAPI, rules: Rules, started: Callable[[], None]) -> uvicorn.Server:
    """Return the server of an application, guarded; its `run(sockets=[...])` ends by Ctrl-C, SIGTERM or `should_exit`.

    Args:
        app: What `build_app` returned.
        rules: What is served of it.
        started: It is called when requests are answered.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Pages that are open are cut off, which is no error of theirs.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets=sockets)

    config = uvicorn.Config(
        Guard(app, rules), log_level="error", access_log=False, server_header=False, date_header=False, ws="none",
        proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=1, h11_max_incomplete_event_size=2**16,
    )  # fmt: skip
    return Server(config)
