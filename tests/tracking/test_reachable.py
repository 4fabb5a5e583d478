"""Whether a server can be reached: what answers is there, whatever it says."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from visllama.tracking import reachable
from visllama.tracking.reachable import find_obstacle


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [200, 404, 500])
def test_what_answers_is_there(address, status):
    assert find_obstacle(f"{address}/{status}") is None


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in find_obstacle(f"http://127.0.0.1:{port}")


def test_what_takes_the_connection_and_says_nothing_is_not_there(monkeypatch):
    monkeypatch.setattr(reachable, "_REQUEST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "timed out" in find_obstacle(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_name_that_is_looked_up_forever_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(reachable, "_ALL_S", 0.2)
    over = threading.Event()
    monkeypatch.setattr(reachable, "_request", lambda address: over.wait(60))
    assert find_obstacle("https://wandb.example").startswith("no answer from https://wandb.example")
    over.set()


def test_an_address_that_is_none():
    assert "nowhere" in find_obstacle("nowhere")
