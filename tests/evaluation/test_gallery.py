import numpy as np
from PIL import Image

from visllama.evaluation.gallery import write_gallery


def test_a_page_that_opens_offline_and_escapes(tmp_path):
    records = [
        {"key": f"r<{i}>", "image": Image.new("RGB", (48, 30)), "captions": ["a & b", "<b>c</b>"]} for i in range(50)
    ]
    captions = ["<script>alert(1)</script>"] + [f"caption {i}" for i in range(1, 50)]
    write_gallery(tmp_path / "g.html", "scenes <test>", records, captions, np.arange(50) / 50, count=5)
    page = (tmp_path / "g.html").read_text()
    assert page.count("<img") == 15 and page.count("data:image/png;base64,") == 15
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>c</b>" not in page and "http" not in page
    assert page.index("caption 1<") < page.index("Best") < page.index("caption 49<")


def test_large_photos_become_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 1200, 3), dtype=np.uint8))
    write_gallery(tmp_path / "g.html", "t", [{"key": "a", "image": noise, "captions": ["b"]}], [""], np.zeros(1))
    assert "(nothing)" in (tmp_path / "g.html").read_text() and (tmp_path / "g.html").stat().st_size < 200_000
