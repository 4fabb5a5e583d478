"""Nothing is served to others, nothing but uploads is read, nothing is asked of other servers, and the server stays up."""

from __future__ import annotations

import asyncio
import base64
import json
import socket

import pytest

from tests.support.demo_server import as_base64, as_file, scene, serve_demo, stand_in
from visllama.release.demo.guard import Guard, Rules

META = {"_type": "gradio.FileData"}


@pytest.fixture
def alive(demo):
    """After whatever a test does, the server answers a proper request."""
    yield demo
    answer = demo.ask("POST", "/caption", {"image": as_base64(scene())})
    assert answer.status == 200 and answer.json["caption"]


def join(server, *data: object, **more: object):
    """Send an event of the page; the first one captions a picture."""
    body = {"data": [*data, "pooled", "greedy", 2, 1, 5], "fn_index": 0, "session_hash": "abc"} | more
    return server.ask("POST", "/gradio_api/queue/join", body)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "", "[::1"],
)
def test_other_names_of_the_server_are_refused(alive, host):
    """A page elsewhere may let its own name point here (DNS rebinding)."""
    answer = alive.ask("GET", "/", headers={"Host": host.format(port=alive.port)})
    assert answer.status in (400, 421) and b"gradio" not in answer.body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
def test_its_own_names_are_served(alive, host):
    assert alive.ask("GET", "/health", headers={"Host": f"{host}:{alive.port}"}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
@pytest.mark.parametrize("path", ["/caption", "/chat", "/gradio_api/queue/join", "/gradio_api/upload"])
def test_other_origins_are_refused(alive, origin, path):
    answer = alive.ask("POST", path, {}, {"Origin": origin.format(port=alive.port)})
    assert answer.status == 403 and "access-control-allow-origin" not in answer.headers


def test_its_own_origin_is_served(alive):
    body = {"image": as_base64(scene())}
    assert alive.ask("POST", "/caption", body, {"Origin": alive.address}).status == 200


def test_headers_of_every_answer(alive):
    for path in ("/", "/health", "/nowhere", "/theme.css"):
        headers = alive.ask("GET", path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={uploads}/../example_1.png",
        "/gradio_api/file={uploads}/%2e%2e/example_1.png",
        "/gradio_api/file={uploads}/..%2fexample_1.png",
        "/gradio_api/file={uploads}/link",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=etc/passwd",
        "/gradio_api/file=//etc/passwd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file={other}/a.png",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy={other}/a.png",
        "/gradio_api/proxy=https://huggingface.co",
        "/static/../../../../../../etc/passwd",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/svelte/../../../../../../etc/passwd",
        "/gradio_api/deep_link?session_hash=abc",
        "/gradio_api/runs",
        "/gradio_api/openapi.json",
        "/gradio_api/custom_component/x/y/z/..%2f..%2fa",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/login",
    ],
)
def test_no_path_leads_out(alive, tmp_path, path):
    (tmp_path / "secret").write_text("root: secret")
    link = alive.uploads / "link"
    if not link.is_symlink():
        link.symlink_to(tmp_path / "secret")
    with stand_in() as (other, asked):
        answer = alive.ask("GET", path.format(uploads=alive.uploads, other=other))
        assert answer.status >= 400, answer.body[:200]
        assert b"root:" not in answer.body and b"PNG" not in answer.body
        assert asked == []


@pytest.mark.parametrize(
    "path", ["/gradio_api/component_server", "/gradio_api/run/predict", "/gradio_api/api/predict",
             "/gradio_api/call/predict", "/gradio_api/process_recording", "/gradio_api/vibe-edit",
             "/gradio_api/run-history/connect", "/gradio_api/stream/abc", "/login"],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(alive, path):
    assert alive.ask("POST", path, {}).status == 404
    assert alive.ask("PUT", "/caption", {}).status == 404
    assert alive.ask("OPTIONS", "/caption").status == 404


@pytest.mark.parametrize(
    "name", ["{other}/a.png", "file:///etc/passwd", "/etc/passwd", "{uploads}/../example_1.png", 5]
)
@pytest.mark.parametrize("key", ["path", "url"])
def test_files_of_the_page_are_uploads(alive, name, key):
    """gradio itself would download an address in place of a path."""
    with stand_in() as (other, asked):
        name = name if isinstance(name, int) else name.format(other=other, uploads=alive.uploads)
        upload = {"path": _upload(alive), "meta": META}
        for file in (upload | {key: name}, {key: name, "meta": META}, [{"a": upload | {key: name}}]):
            answer = join(alive, file)
            assert answer.status == 400 and "named by the upload" in answer.json["detail"]
        assert join(alive, None, event_data={key: name}).status == 400
        assert asked == []
    assert join(alive, upload | {"url": f"{alive.address}/gradio_api/file={upload['path']}"}).status == 200


def test_an_upload_that_is_gone_is_told(alive):
    answer = join(alive, {"path": f"{alive.uploads}/gone.png", "meta": META})
    assert answer.status == 400 and answer.json["detail"] == "the picture is no longer there: choose it again"


def _upload(server) -> str:
    answer = server.upload(as_file(scene()), "../../a.png")
    (path,) = answer.json
    assert path.startswith(f"{server.uploads}/") and ".." not in path
    return path


def test_a_file_that_is_too_large_is_not_kept(alive):
    """Neither one that is too large as a whole, nor one that is so by a little."""
    for size in (2**20 + 1, 2 * 2**20):
        before = sorted(alive.uploads.rglob("*"))
        assert alive.upload(b"a" * size, "a.png").status == 413
        assert sorted(alive.uploads.rglob("*")) == before
    assert alive.upload(b"a" * 2**19, "a.png").status == 200


@pytest.mark.parametrize("body", [b"", b"words", b"[" * 50_000, b'{"data": 1', b"9" * 9000, b"\xff"])
def test_events_of_nonsense_are_refused(alive, body):
    assert 400 <= alive.ask("POST", "/gradio_api/queue/join", body).status < 500


def test_a_huge_body_is_refused_before_it_comes(alive):
    """By what its head says: nothing of it is sent here, and the answer comes all the same."""
    for path in ("/caption", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"):
        with socket.create_connection((alive.host, alive.port), timeout=30) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: {alive.host}:{alive.port}\r\nContent-Length: {10**10}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_huge_body_in_pieces_is_refused_while_it_comes(alive):
    """With no length in its head, up to the limit."""
    with socket.create_connection((alive.host, alive.port), timeout=30) as client:
        head = f"POST /caption HTTP/1.1\r\nHost: {alive.host}:{alive.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        sent = 0
        try:
            while sent < 50 * 2**20:
                client.sendall(b"10000\r\n" + b"a" * 2**16 + b"\r\n")
                sent += 2**16
        except OSError:  # the server has hung up
            pass
        assert sent < 50 * 2**20


def test_clients_that_send_half_a_request_keep_nobody_from_asking(alive):
    head = f"POST /caption HTTP/1.1\r\nHost: {alive.host}:{alive.port}\r\nContent-Length: 100\r\n\r\n{{"
    clients = [socket.create_connection((alive.host, alive.port)) for _ in range(30)]
    for number, client in enumerate(clients):
        client.sendall(head[: None if number % 2 else 20].encode())
    assert alive.ask("GET", "/health").status == 200
    for client in clients:
        client.close()


async def _never(*_: object) -> dict:
    await asyncio.Event().wait()


def _answer_of(guard: Guard, receive, **scope: object) -> tuple[int, dict]:
    sent = []

    async def send(message) -> None:
        sent.append(message)

    head = {"type": "http", "method": "POST", "scheme": "http", "path": "/caption", "client": ("9.9.9.9", 1)}
    asyncio.run(guard(head | {"headers": [(b"host", b"here:1")]} | scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def _rules(**more: object) -> Rules:
    return Rules(lambda host: host == "here:1", 1000, more.pop("requests_per_minute", 5), "/nowhere", **more)


def test_a_body_that_does_not_come_is_not_waited_for():
    status, said = _answer_of(Guard(None, _rules(body_timeout_s=0.01)), _never)
    assert (status, said["error"]) == (408, "the request came too slowly")


def test_a_body_that_comes_byte_by_byte_is_not_waited_for():
    async def slowly() -> dict:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"a", "more_body": True}

    status, _ = _answer_of(Guard(None, _rules(body_timeout_s=0.05)), slowly)
    assert status == 408


def test_a_client_that_asks_too_often_waits():
    guard = Guard(None, _rules(body_timeout_s=0.001, requests_per_minute=2))
    statuses = [_answer_of(guard, _never)[0] for _ in range(3)]
    assert statuses == [408, 408, 429]
    assert _answer_of(guard, _never, client=("8.8.8.8", 1))[0] == 408, "another client"


def test_a_rate_is_told_with_when_to_come_again(demo):
    with serve_demo({"only": next(iter(demo.models)).pipeline}, requests_per_minute=1) as server:
        statuses = [server.ask("POST", "/caption", {}) for _ in range(2)]
        assert [answer.status for answer in statuses] == [400, 429]
        assert 1 <= int(statuses[1].headers["retry-after"]) <= 60
        assert join(server, None).status == 429
        assert server.ask("GET", "/").status == 200


def test_a_password_is_wanted_for_everything(demo):
    with serve_demo({"only": next(iter(demo.models)).pipeline}, user="lab", password="pass:wörd") as server:
        proper = "Basic " + base64.b64encode("lab:pass:wörd".encode()).decode()
        wrong = "Basic " + base64.b64encode(b"lab:password").decode()
        for path in ("/", "/health", "/gradio_api/info", "/assets/a.js", "/nowhere"):
            for headers in ({}, {"Authorization": wrong}, {"Authorization": "Basic é"}, {"Authorization": "Bearer x"}):
                headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
                answer = server.ask("GET", path, headers=headers)
                assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic")
        assert server.ask("GET", "/health", headers={"Authorization": proper}).status == 200
        assert server.ask("POST", "/caption", {}).status == 401


def test_no_web_socket_is_opened():
    sent = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(Guard(None, _rules())({"type": "websocket", "headers": []}, _never, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
