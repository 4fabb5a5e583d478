"""Which files a client may name: uploads, and no others."""

from __future__ import annotations

import pytest

from visllama.release.demo.uploads import find_foreign_file, is_own_file

HOST = "127.0.0.1:7860"


@pytest.fixture
def uploads(tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "a.png").write_text("a")
    (tmp_path / "outside.png").write_text("a")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "outside.png")
    return tmp_path / "uploads"


def test_an_upload_is_own_and_nothing_else_is(uploads):
    assert is_own_file(f"{uploads}/a.png", str(uploads))
    for path in (
        "a.png",
        f"/{uploads}/a.png",
        f"{uploads}/../outside.png",
        f"{uploads}/link.png",
        "/etc/passwd",
        "/\0",
    ):
        assert not is_own_file(path, str(uploads)), path


def test_an_event_may_name_uploads_alone(uploads):
    own = {"path": f"{uploads}/a.png", "url": f"http://{HOST}/gradio_api/file={uploads}/a.png"}
    assert find_foreign_file({"data": [[own], "text", 3, None]}, str(uploads), HOST) is None
    for foreign in (
        {"path": "/etc/passwd"},
        {"path": "http://127.0.0.1:1/a.png"},
        {"path": 3},
        {"url": "http://127.0.0.1:1/a.png"},
        {"url": f"http://evil.example/gradio_api/file={uploads}/a.png"},
    ):
        assert "named by the upload" in find_foreign_file({"data": [{"files": [foreign]}]}, str(uploads), HOST), foreign
    assert "no longer there" in find_foreign_file({"path": f"{uploads}/gone.png"}, str(uploads), HOST)
    assert "more values" in find_foreign_file([0] * 10_001, str(uploads), HOST)
