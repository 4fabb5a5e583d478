"""A page of pictures with what was said of them: the worst, the best, and some at random. One file, opens offline."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visllama.data.images import open_image

_THUMBNAIL_PX = 160
_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2rem;max-width:80rem;color:#222;background:#fff}
section{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
figure{margin:0;padding:.7rem;border:1px solid #ddd;border-radius:6px}
img{width:160px;height:160px;object-fit:contain}
figcaption b{display:block;margin:.4rem 0}
ul{margin:.3rem 0;padding-left:1.1rem;color:#555;font-size:13px}
small{color:#777}
"""


def _thumbnail(image: bytes | Image.Image) -> str:
    image = open_image(image)
    scale = _THUMBNAIL_PX / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    buffer = io.BytesIO()
    image.resize(size, resample).save(buffer, "PNG" if scale > 1 else "JPEG")
    kind = "png" if scale > 1 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(record: Mapping, caption: str, score: float) -> str:
    references = "".join(f"<li>{html.escape(text)}</li>" for text in record["captions"])
    said, source = html.escape(caption) or "(nothing)", html.escape(record["key"])
    return (
        f'<figure><img src="{_thumbnail(record["image"])}" alt=""><figcaption><b>{said}</b>'
        f"<small>{source} &middot; CIDEr {100 * score:.0f}</small><ul>{references}</ul></figcaption></figure>"
    )


def write_gallery(
    path: Path, title: str, records: Sequence[Mapping], captions: Sequence[str], scores: np.ndarray, count: int = 20
) -> None:
    """Write the page: the `count` worst, best and random images by per-image CIDEr, with their references."""
    ranked = np.argsort(scores, kind="stable")
    chosen = {
        "Worst": ranked[:count],
        "Best": ranked[::-1][:count],
        "At random": np.random.default_rng(0).permutation(len(records))[:count],
    }
    body = "".join(
        f"<h2>{name}</h2><section>{''.join(_figure(records[i], captions[i], scores[i]) for i in rows)}</section>"
        for name, rows in chosen.items()
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    path.write_text(f"{page}<h1>{html.escape(title)}</h1>{body}</html>", encoding="utf-8")
