"""A demo that is served from a thread, and a stand-in for whatever it must not ask."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.support.tiny import TEXT, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.inference.pipeline import Pipeline
from visllama.model.weights import build_model
from visllama.release.demo.guard import Rules
from visllama.release.demo.served import Served, Shelf
from visllama.release.demo.server import build_app, make_server, own_hosts, upload_folder
from visllama.release.demo.verb import bind


def tiny_pipeline(connector: str, seed: int = 0) -> Pipeline:
    """Return a tiny model that was not trained: it writes on and on, and something else for each picture."""
    torch.manual_seed(seed)
    model = build_model(tiny_parts(connector), ("connector", "markers")).load_base_weights(torch.float32)
    for parameter in model.connector.parameters():
        parameter.data *= 3
    return Pipeline(model, TEXT)


def scene(index: int = 0) -> Image.Image:
    return ScenesSource("test", index + 1, 1)[index]["image"]


def as_file(picture: Image.Image, kind: str = "PNG") -> bytes:
    """Return the content of a picture's file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def as_base64(picture: Image.Image) -> str:
    return base64.b64encode(as_file(picture)).decode()


@dataclass
class Answer:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class DemoServer:
    """A server that runs.

    Attributes:
        host, port: Its address.
        uploads: Its folder of uploads.
        models: What it serves.
    """

    host: str
    port: int
    uploads: Path
    models: Shelf

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        """Send a request, its path as it is; what is neither bytes nor None goes as JSON."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
                if "Content-Type" not in (headers or {}):
                    connection.putheader("Content-Type", "application/json")
            connection.endheaders(content)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def upload(self, content: bytes, name: str) -> Answer:
        """Upload a file as the page does."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + b"\r\n--x--\r\n"
        return self.ask("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})


@contextmanager
def serve_demo(models: dict[str, Pipeline], max_mb: float = 1, **rules: Any) -> Iterator[DemoServer]:
    """Yield a server of models, with examples of the embedded world."""
    shelf = Shelf([Served(name, pipeline, {"max_new_tokens": 12}, 16) for name, pipeline in models.items()])
    with bind("127.0.0.1", 0) as listening, upload_folder() as uploads:
        port = listening.getsockname()[1]
        app = build_app(shelf, [scene(i) for i in range(3)], uploads, max_mb, 16)
        settings = {"requests_per_minute": 10_000} | rules
        is_started = threading.Event()
        own = Rules(own_hosts("127.0.0.1", port), int(max_mb * 2**20), uploads=str(uploads), **settings)
        server = make_server(app, own, is_started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            assert is_started.wait(60)
            yield DemoServer("127.0.0.1", port, uploads, shelf)
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def stand_in() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server that must not be asked, and the paths that it was asked for all the same."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(as_file(scene()))

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
