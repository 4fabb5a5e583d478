"""Pictures to be clicked: of the embedded world, or of a gallery, which is read as data alone."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image

from tests.support.demo_server import as_file, scene
from tests.support.galleries import write_gallery_of
from visllama.release.demo.examples import find_examples, read_gallery


def test_six_scenes_that_no_training_has_shown(tmp_path):
    pictures = find_examples(tmp_path / "weights", is_of_scenes=True)
    assert len(pictures) == 6
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(scene(0)))


def test_pictures_of_the_runs_galleries(tmp_path, records):
    """The gallery that `evaluate` writes; each picture once, six at most."""
    folder = tmp_path / "evaluations" / "mine"
    folder.mkdir(parents=True)
    write_gallery_of(folder / "gallery.html", "mine", records, ["a"] * 6, [0.1 * i for i in range(6)])
    found = find_examples(tmp_path / "weights", is_of_scenes=False)
    assert len(found) == 6 and all(max(picture.size) == 160 for picture in found)
    (tmp_path / "evaluations" / "again").mkdir()
    (tmp_path / "evaluations" / "again" / "gallery.html").write_text((folder / "gallery.html").read_text())
    assert len(find_examples(tmp_path / "weights", is_of_scenes=False)) == 6
    assert find_examples(tmp_path / "elsewhere" / "weights", is_of_scenes=False) == []


def _card(address: str) -> str:
    return f'<figure data-score="1" data-key="a"><img src="{address}" alt=""></figure>'


def _data(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


GOOD = _data(as_file(scene()))


@pytest.mark.parametrize(
    "odd",
    [
        _card("http://127.0.0.1:1/a.png"),
        _card("file:///etc/passwd"),
        _card("/etc/passwd"),
        _card("data:image/svg+xml;base64,PHN2Zy8+"),
        _card("data:image/png;base64,!!!"),
        _card(_data(b"words")),
        _card(_data(as_file(Image.new("L", (10_000, 6_000))))),
        _card(""),
        "<figure data-score=1 data-key=a><img></figure>",
        f"<img src='{GOOD}'>",
        f"<figure><img src='{GOOD}'></figure>",
        "<figure data-score=1 data-key=a><script>",
        "<!-- <figure",
    ],
    ids=range(13),
)
def test_what_is_odd_is_passed_over(tmp_path, odd):
    (tmp_path / "a.html").write_text(odd)
    assert read_gallery(tmp_path / "a.html", 6) == []
    if "script" not in odd and "<!--" not in odd:
        (tmp_path / "a.html").write_text(odd + _card(GOOD))
        assert len(read_gallery(tmp_path / "a.html", 6)) == 1


def test_what_is_no_file_is_passed_over(tmp_path):
    (tmp_path / "device.html").symlink_to("/dev/zero")
    (tmp_path / "bytes.html").write_bytes(b"\xff\xfe")
    for name in ("device", "bytes", "nowhere"):
        assert read_gallery(tmp_path / f"{name}.html", 6) == []
