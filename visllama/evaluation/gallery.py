"""A page of pictures with what was said of them, to be sorted and searched. One file, which opens offline.

jinja2 escapes all that comes from data, and the page allows itself one script by its hash. The template is
`evaluation/templates/gallery.html.jinja`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from visllama.data.record import images_of
from visllama.evaluation.prompts import Prompts
from visllama.files import write_whole
from visllama.images.decode import open_image
from visllama.images.inline import data_address

_THUMBNAIL_PX = 160
_HALLUCINATED = "hallucinated"
_SCRIPT = """
const form = document.forms[0], grid = document.querySelector("section"), cards = [...grid.children];
const scores = new Map(cards.map(card => [card, JSON.parse(card.dataset.scores)]));
const lower = ["CHAIRs", "CHAIRi"];
function order(a, b) {
  const chosen = form.sort.value, name = chosen.slice(1);
  if (chosen === "") return a.dataset.key.localeCompare(b.dataset.key, undefined, {numeric: true});
  const sign = (chosen[0] === "+") !== lower.includes(name) ? -1 : 1;
  return sign * (scores.get(a)[name] - scores.get(b)[name]);
}
function update() {
  const words = form.find.value.toLowerCase(), kind = form.show.value;
  cards.sort(order);
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


@dataclass(frozen=True)
class Shown:
    """What is shown of an evaluation's texts.

    Attributes:
        texts: The text that was written on each prompt.
        scores: Each metric of each text, by the metric's name, as a share of 1. The first one ranks the texts, and more
            of it is better.
        ids: The ids by which the texts are written and scored; None are the records' keys.
        absent: The objects that each caption names and that are not there; empty where that was not measured.
    """

    texts: Sequence[str]
    scores: Mapping[str, Sequence[float]]
    ids: Sequence[int | str] | None = None
    absent: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_gallery(path: Path, title: str, prompts: Prompts, shown: Shown, count: int = 100) -> None:
    """Write the page: the `count` worst, best and random texts by their first score, with their references.

    Where absent objects are known, the captions that name most of them are shown too. A caption's words are green where
    a reference has them, and red where none has; an answer is green where at least half of the score is given for it.

    Args:
        path: The path of the page.
        title: Its heading.
        prompts: What the texts were written on: records with captions, or each with one question.
        shown: The texts and their scores.
        count: How many of a kind are shown.
    """
    metric = next(iter(shown.scores))
    ranked = np.argsort(shown.scores[metric], kind="stable").tolist()
    chosen = {
        "worst": set(ranked[:count]),
        "best": set(ranked[::-1][:count]),
        "random": set(np.random.default_rng(0).permutation(len(shown.texts))[:count].tolist()),
    }
    if any(shown.absent):
        num_absent = [len(objects) for objects in shown.absent]
        most = np.argsort(num_absent, kind="stable")[::-1][:count].tolist()
        chosen[_HALLUCINATED] = {number for number in most if num_absent[number] > 0}

    cards = []
    for number in ranked:
        kinds = [name for name, members in chosen.items() if number in members]
        if kinds:
            cards.append(_card(prompts.record(number), shown, number, kinds))

    num_texts = len(shown.texts)
    about = f"all {num_texts:,}"
    if len(cards) < num_texts:
        about = f"{len(cards):,} of {num_texts:,}: the {count} worst, best and random ones by {metric}"
    has_answers = "questions" in prompts[0].record
    environment = Environment(
        loader=PackageLoader("visllama.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("gallery.html.jinja").render(
        title=title,
        about=about,
        kinds=["", *chosen, *(["right", "wrong"] if has_answers else [])],
        metrics=list(shown.scores),
        cards=cards,
        script=_SCRIPT,
        script_sha256=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )
    write_whole(path, page)


def _card(record: Mapping, shown: Shown, number: int, kinds: list[str]) -> dict:
    """Return what the template shows of one text."""
    text = shown.texts[number]
    scores = {name: float(values[number]) for name, values in shown.scores.items()}
    score = next(iter(scores.values()))
    if "questions" in record:
        asked = record["questions"][0]
        question, references, words = asked["question"], asked["answers"], []
        kinds = [*kinds, "right" if score >= 0.5 else "wrong"]
    else:
        question, references = "", record["captions"]
        words = _words_of_caption(text, references)
    return {
        "kinds": kinds,
        "score": score,
        "scores": scores,
        "key": record["key"],
        "id": record["key"] if shown.ids is None else shown.ids[number],
        "pictures": [_thumbnail(image) for image in images_of(record)],
        "question": question,
        "text": text,
        "words": words,
        "absent": list(dict.fromkeys(shown.absent[number])) if any(shown.absent) else [],
        "references": list(dict.fromkeys(references)),
    }


def _words_of_caption(caption: str, references: Sequence[str]) -> list[dict[str, str]]:
    """Return each word of a caption, and whether a reference has it."""
    known = {word for reference in references for word in _words(reference)}
    found = []
    for word in caption.split():
        found.append({"text": word, "kind": "found" if known.issuperset(_words(word)) else "other"})
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _thumbnail(image: bytes | Image.Image) -> str:
    image = open_image(image)
    scale = _THUMBNAIL_PX / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return data_address(image.resize(size, resample), "png" if scale > 1 else "jpeg")
