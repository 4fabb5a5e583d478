"""What tests of `inspect` type, and the pictures of their tars."""

from __future__ import annotations

import io

from PIL import Image

SMALL = ("stage.global_batch_size=16", "num_samples=20")


def red_picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def of_tar(tar: str) -> tuple[str, ...]:
    """Type a tar as the only source."""
    return (
        "data=shards", f"data.sources.shards.path={tar}", "evaluation=none", "stage.global_batch_size=4",
        "data.max_bad_fraction=1", "data.sources.shards.val_fraction=null", "trainer.val_check_interval=null",
    )  # fmt: skip
