"""A page of pictures with what was said of them: the worst, the best, and some at random. One file, opens offline."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visllama.data.record import images_of
from visllama.files import write_whole
from visllama.images.decode import open_image

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


def _figure(record: Mapping, text: str, score: float, metric: str) -> str:
    asked = record["questions"][0] if "questions" in record else {"question": "", "answers": record["captions"]}
    references = "".join(f"<li>{html.escape(text)}</li>" for text in dict.fromkeys(asked["answers"]))
    said, source = html.escape(text) or "(nothing)", html.escape(record["key"])
    pictures = "".join(f'<img src="{_thumbnail(image)}" alt="">' for image in images_of(record))
    return (
        f"<figure>{pictures}<figcaption>{html.escape(asked['question'])}<b>{said}</b>"
        f"<small>{source} &middot; {metric} {100 * score:.0f}</small><ul>{references}</ul></figcaption></figure>"
    )


def write_gallery(
    path: Path, title: str, records: Sequence[Mapping], texts: Sequence[str], scores: Sequence[float],
    metric: str = "CIDEr", count: int = 20,
) -> None:  # fmt: skip
    """Write the page: the `count` worst, best and random records by their scores, with their references.

    Args:
        path: Of the page.
        title: Its heading.
        records: With captions, or each with one question.
        texts: What was said of each.
        scores: Of each, as a share of 1.
        metric: What the scores are.
        count: How many of a kind are shown.
    """
    ranked = np.argsort(scores, kind="stable")
    chosen = {
        "Worst": ranked[:count],
        "Best": ranked[::-1][:count],
        "At random": np.random.default_rng(0).permutation(len(records))[:count],
    }
    body = "".join(
        f"<h2>{name}</h2><section>{''.join(_figure(records[i], texts[i], scores[i], metric) for i in rows)}</section>"
        for name, rows in chosen.items()
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    write_whole(path, f"{page}<h1>{html.escape(title)}</h1>{body}</html>")
