"""`visllama demo` as a user calls it: what is refused, what is said, and that nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from tests.support.demo_server import as_base64, as_file, scene
from tests.support.tiny import TEXT, tiny_parts
from visllama.errors import ConfigError
from visllama.model.weights import save_weights
from visllama.release.demo.server import own_hosts
from visllama.release.demo.verb import PASSWORD, assemble, bind, greeting


@pytest.fixture
def refused(configure, tmp_path, monkeypatch):
    """Return what is said of a configuration that is refused."""
    monkeypatch.delenv(PASSWORD, raising=False)

    def run(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            assemble(configure("demo", f"weights={tmp_path}", "trainer=cpu", "port=0", *overrides)).close()
        return str(caught.value)

    return run


def test_others_are_let_in_by_a_password_alone(refused, configure, tmp_path, monkeypatch):
    for host in ("0.0.0.0", "192.168.1.5", "node7", "'::'"):
        assert f"user=NAME, and the password in the environment variable {PASSWORD}" in refused(f"host={host}")
    assert f"set the environment variable {PASSWORD}" in refused("host=0.0.0.0", "user=lab")
    assert "without a colon" in refused("user='a:b'")
    monkeypatch.setenv(PASSWORD, "secret")
    assert "user=NAME" in refused("host=0.0.0.0")
    config = configure("demo", f"weights={tmp_path}", "trainer=cpu", "port=0", "host=0.0.0.0", "user=lab")
    assemble(config).close()
    assert "secret" not in str(config)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("port=70000", "port=70000: must be from 0"),
        ("max_upload_mb=0", "max_upload_mb=0.0: must be more than 0"),
        ("max_queue=0", "max_queue=0"),
        ("requests_per_minute=-1", "requests_per_minute=-1"),
        ("weights=[]", "give one weights folder"),
        ("+decoding.nonsense=1", "decoding.nonsense"),
        ("host=nowhere.invalid", "host=nowhere.invalid"),
    ],
)
def test_what_cannot_be_is_named(refused, override, says):
    assert says in refused(override)


def test_a_port_that_is_taken_is_told_with_one_that_is_free(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(f"port={port}")
    assert f"port={port}: cannot be taken" in said
    free = int(said.rpartition("port=")[2].split()[0])
    bind("127.0.0.1", free).close()


def test_without_gradio_the_extra_is_named(refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused() == "visllama demo is an extra, which is not there:  pip install 'visllama[demo]'"


def test_what_is_said_at_the_start():
    said = greeting("127.0.0.1", 7861)
    assert "http://127.0.0.1:7861\n" in said and "ssh -L 7861:127.0.0.1:7861 " in said and "Ctrl-C" in said
    assert "http://[::1]:7861" in greeting("::1", 7861) and "-L 7861:[::1]:7861" in greeting("::1", 7861)
    assert "ssh" not in greeting("0.0.0.0", 7861)


def test_a_server_of_all_addresses_is_meant_by_numbers_and_its_own_name():
    is_own = own_hosts("0.0.0.0", 80)
    assert is_own("192.168.1.5:80") and is_own("192.168.1.5") and is_own(f"{socket.gethostname()}:80")
    assert is_own("[fe80::1]:80") and not is_own("evil.example:80") and not is_own("192.168.1.5:81")
    assert not own_hosts("127.0.0.1", 80)("192.168.1.5:80")
    assert not own_hosts("127.0.0.1", 80)("localhost:²"), "a superscript is no number of a port"
    assert not own_hosts("127.0.0.1", 80)(f"localhost:{'8' * 5000}"), "Python reads no number of so many digits"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_nothing_is_left_behind(make_model, tmp_path, number):
    """Two weights, an upload, a caption and a file that came half: at the end no file of it is on the disk."""
    for name in ("one", "two"):
        save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / name / "weights")
    for folder in ("tmp", "work"):
        (tmp_path / folder).mkdir()
    command = [sys.executable, "-m", "visllama", "demo", "port=0", "trainer=cpu"]
    command.append(f"weights=[{tmp_path}/one/weights,{tmp_path}/two/weights]")
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path / "work", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().removeprefix("The page: ").strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        served = json.loads(urllib.request.urlopen(f"{address}/health").read())
        assert served == {"weights": [f"{tmp_path.name}/one", f"{tmp_path.name}/two"]}
        host, port = address.removeprefix("http://").split(":")
        _post(f"{address}/caption", json.dumps({"image": as_base64(scene())}).encode(), "application/json")
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        _post(
            f"{address}/gradio_api/upload",
            head + as_file(scene()) + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        )
        assert len(list((tmp_path / "tmp").rglob("a.png"))) == 1, "an upload lies there while it runs"
        with socket.create_connection((host, int(port))) as half:
            half.sendall(
                f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 99\r\n\r\nx".encode()
            )
            open_page = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc")
            time.sleep(0.2)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        open_page.close()
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file() and "torch" not in str(path)] == []
    assert list((tmp_path / "work").iterdir()) == []


def _post(address: str, body: bytes, kind: str) -> None:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    assert urllib.request.urlopen(request).status == 200
