"""Uploads are read out of their folder alone, and what is no picture is told in plain words."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.support.demo_server import as_file, scene
from visllama.errors import ConfigError
from visllama.release.demo.pictures import read_picture, read_upload


def test_an_upload_is_read_with_its_name(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    path = str(tmp_path / "a.png")
    assert read_upload({"path": path, "orig_name": "mine.png"}, tmp_path, 3) == (b"abc", "mine.png")
    assert read_upload({"path": path}, tmp_path, 3) == read_upload(path, tmp_path, 3) == (b"abc", "a.png")


def test_nothing_else_is_read(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (tmp_path / "secret").write_text("words")
    (uploads / "link").symlink_to(tmp_path / "secret")
    (uploads / "device").symlink_to("/dev/zero")
    for path in ("../secret", "link", "device", "nowhere", "", "."):
        for file in ({"path": f"{uploads}/{path}"}, f"{uploads}/{path}"):
            with pytest.raises(ConfigError, match="no longer there"):
                read_upload(file, uploads, 100)
    for file in (None, 5, {}, {"path": 5}, {"path": "http://127.0.0.1:1"}, {"path": "/a\0"}, []):
        with pytest.raises(ConfigError, match="no longer there"):
            read_upload(file, uploads, 100)


def test_a_file_that_is_too_large_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        read_upload(str(tmp_path / "a.png"), tmp_path, 2**20)


def test_what_is_no_picture_is_told_in_plain_words():
    assert read_picture(as_file(scene()), "a").size == scene().size
    for content in (b"", b"words", as_file(scene())[:-40], b"<svg/>"):
        with pytest.raises(ConfigError, match=r"^a is no picture that can be read: JPEG, PNG, WebP, GIF or BMP$"):
            read_picture(content, "a")
    with pytest.raises(ConfigError, match="a is too large: 10000x6000"):
        read_picture(as_file(Image.new("L", (10_000, 6_000))), "a")
