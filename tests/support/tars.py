"""Tars of records, as webdataset writes them."""

from __future__ import annotations

import io
import tarfile

from PIL import Image
from webdataset import TarWriter

from visllama.data.shards.source import ShardSource


def picture(shade: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def write(path, count: int = 4, first: int = 0) -> str:
    with TarWriter(str(path)) as tar:
        for i in range(first, first + count):
            tar.write(
                {
                    "__key__": f"{i:04d}",
                    "jpg": picture(i),
                    "json": {"captions": [f"number {i}", f"a gray {i}"], "url": "x"},
                }
            )
    return str(path)


def whole(path: str | None, **more) -> ShardSource:
    """Read all records of tars, and hold out none."""
    return ShardSource("train", path, val_fraction=None, **more)


def keys(source) -> list[str]:
    return [source[i]["key"] for i in range(len(source))]


def members(path, *files: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def scored(path, scores: list[dict], captions: int = 1) -> str:
    with TarWriter(str(path)) as tar:
        for i, found in enumerate(scores):
            tar.write({"__key__": f"{i:04d}", "jpg": picture(i), "json": {"captions": ["x"] * captions, **found}})
    return str(path)
