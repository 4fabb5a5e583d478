"""A page of pictures with what was said of them, to be sorted and searched. One file, which opens offline."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from visllama.data.record import images_of
from visllama.evaluation.prompts import Prompts
from visllama.files import write_whole
from visllama.images.decode import open_image
from visllama.images.inline import data_address

_THUMBNAIL_PX = 160
_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2rem;max-width:80rem;color:#222;background:#fff}
form{display:flex;flex-wrap:wrap;gap:.7rem;align-items:center;margin:1rem 0}
input,select{font:inherit;padding:.2rem .4rem}
section{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
figure{margin:0;padding:.7rem;border:1px solid #ddd;border-left:5px solid #ddd;border-radius:6px}
figure.right{border-left-color:#2e8b3d}figure.wrong{border-left-color:#c0392b}
figure[hidden]{display:none}
img{width:160px;height:160px;object-fit:contain}
figcaption b{display:block;margin:.4rem 0;overflow-wrap:anywhere}
.right b,b .found{color:#1d6b2b}.wrong b,b .other{color:#b03024}
ul{margin:.3rem 0;padding-left:1.1rem;color:#555;font-size:13px}
small,output{color:#666;overflow-wrap:anywhere}
"""
_SCRIPT = """
const form = document.forms[0], grid = document.querySelector("section"), cards = [...grid.children];
const orders = {
  worst: (a, b) => a.dataset.score - b.dataset.score,
  best: (a, b) => b.dataset.score - a.dataset.score,
  key: (a, b) => a.dataset.key.localeCompare(b.dataset.key, undefined, {numeric: true}),
};
function update() {
  const words = form.find.value.toLowerCase(), kind = form.show.value;
  cards.sort(orders[form.sort.value]);
  for (const card of cards) {
    const found = card.textContent.toLowerCase().includes(words);
    card.hidden = !found || (kind !== "" && !card.classList.contains(kind));
    grid.append(card);
  }
  form.count.value = cards.filter(card => !card.hidden).length + " shown";
}
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
update();
"""
_SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEAD = f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_SHA256}'">
<meta name=viewport content="width=device-width">"""


def write_gallery(
    path: Path, title: str, prompts: Prompts, texts: Sequence[str], scores: Sequence[float],
    metric: str = "CIDEr", count: int = 100, ids: Sequence[int | str] | None = None,
) -> None:  # fmt: skip
    """Write the page: the `count` worst, best and random records by their scores, with their references.

    A caption's words are green where a reference has them, and red where none has; an answer is green where at least
    half of the score is given for it.

    Args:
        path: Of the page.
        title: Its heading.
        prompts: What the texts were written on: records with captions, or each with one question.
        texts: What was said of each.
        scores: Of each, as a share of 1.
        metric: What the scores are.
        count: How many of a kind are shown.
        ids: The ids by which the texts are written and scored; None are the records' keys.
    """
    ranked = np.argsort(scores, kind="stable").tolist()
    kinds = {
        "worst": set(ranked[:count]),
        "best": set(ranked[::-1][:count]),
        "random": set(np.random.default_rng(0).permutation(len(texts))[:count].tolist()),
    }
    cards = []
    for i in ranked:
        names = [name for name, members in kinds.items() if i in members]
        if names:
            record = prompts.record(i)
            own_id = record["key"] if ids is None else ids[i]
            cards.append(_card(record, own_id, texts[i], scores[i], metric, names))

    heading = html.escape(title)
    about = f"all {len(texts):,}"
    if len(cards) < len(texts):
        about = f"{len(cards):,} of {len(texts):,}: the {count} worst, best and random ones by {html.escape(metric)}"
    form = _form(has_answers="questions" in prompts[0].record)
    write_whole(
        path,
        f"{_HEAD}<title>{heading}</title><style>{_STYLE}</style><h1>{heading}</h1><p>{about}</p>{form}"
        f"<section>{''.join(cards)}</section><script>{_SCRIPT}</script></html>",
    )


def _form(has_answers: bool) -> str:
    """Return what a person sorts and searches by; answers alone are right or wrong."""
    kinds = ["", "worst", "best", "random", *(["right", "wrong"] if has_answers else [])]
    orders = {"worst": "worst first", "best": "best first", "key": "by key"}
    shown = "".join(f'<option value="{kind}">{kind or "all"}</option>' for kind in kinds)
    sorted_by = "".join(f'<option value="{order}">{label}</option>' for order, label in orders.items())
    return (
        "<form><input type=search name=find placeholder='find a word' aria-label='find a word'>"
        f"<label>show <select name=show>{shown}</select></label>"
        f"<label>order <select name=sort>{sorted_by}</select></label><output name=count></output></form>"
    )


def _card(record: Mapping, own_id: int | str, text: str, score: float, metric: str, kinds: Sequence[str]) -> str:
    if "questions" in record:
        asked = record["questions"][0]
        question, references = html.escape(asked["question"]), asked["answers"]
        kinds = [*kinds, "right" if score >= 0.5 else "wrong"]
        said = html.escape(text)
    else:
        question, references = "", record["captions"]
        said = _coloured(text, references)
    listed = "".join(f"<li>{html.escape(reference)}</li>" for reference in dict.fromkeys(references))
    key = html.escape(record["key"])
    pictures = "".join(f'<img src="{_thumbnail(image)}" alt="">' for image in images_of(record))
    return (
        f'<figure class="{" ".join(kinds)}" data-score="{score:.6g}" data-key="{key}" '
        f'data-id="{html.escape(str(own_id))}">{pictures}<figcaption>{question}'
        f"<b>{said or '(nothing)'}</b><small>{key} &middot; {metric} {100 * score:.0f}</small><ul>{listed}</ul>"
        f"</figcaption></figure>"
    )


def _coloured(caption: str, references: Sequence[str]) -> str:
    """Return a caption as HTML, in which each word says whether a reference has it."""
    known = {word for reference in references for word in _words(reference)}
    spans = []
    for word in caption.split():
        kind = "found" if known.issuperset(_words(word)) else "other"
        spans.append(f'<span class="{kind}">{html.escape(word)}</span>')
    return " ".join(spans)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _thumbnail(image: bytes | Image.Image) -> str:
    image = open_image(image)
    scale = _THUMBNAIL_PX / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return data_address(image.resize(size, resample), "png" if scale > 1 else "jpeg")
