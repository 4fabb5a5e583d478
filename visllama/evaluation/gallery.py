"""Write a page of pictures with the texts about them, to be sorted and searched. It is one file, which opens offline.

jinja2 escapes everything that comes from data, and the page allows only its own script, by the script's hash. The
template is `evaluation/templates/gallery.html.jinja`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """The generated captions or answers of an evaluation, with the values that a gallery page shows beside them.

    Attributes:
        texts: The generated text of each prompt. All other attributes are in the same order.
        scores: The score of each text by the metric's name, where 1 is printed as 100; at least one metric. The first
            metric ranks the texts, and a higher score of it has to be better.
        ids: The id of each text in the files of predictions and scores; None means the keys of the records.
        absent: The objects that each caption names although they are not in its picture; empty if not measured.
    """

    texts: Sequence[str]
    scores: Mapping[str, Sequence[float]]
    ids: Sequence[int | str] | None = None
    absent: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_gallery(path: Path, title: str, prompts: Prompts, shown: Shown, count: int = 100) -> None:
    """Write an HTML page that shows the worst, the best and some random texts, with their pictures and references.

    Worst and best are ranked by the first metric of `shown`. If absent objects are known, the captions that name the
    most of them are shown too. A word of a caption is green if a reference has it, and red otherwise; an answer is
    green if its score is at least half of the full score.

    Args:
        path: The HTML file, which is replaced if it exists; its folder has to exist.
        title: The heading of the page.
        prompts: The prompts of the texts, at least one: records with captions, or records with one question each.
        shown: The texts and their scores, in the order of the prompts.
        count: The number of texts that are shown of each kind: worst, best, random, and naming absent objects.

    Raises:
        BadRecord: If a picture cannot be decoded.
        WriteFailed: If the disk is full or fails.
    """
    metric = next(iter(shown.scores))
    # Stable, so that texts of equal score stay in the order of the prompts.
    ranked = np.argsort(shown.scores[metric], kind="stable").tolist()
    chosen = _choose(shown, ranked, count)

    # Only the texts that are shown have their pictures read.
    cards = []
    for number in ranked:
        card_kinds = [kind for kind, members in chosen.items() if number in members]
        if card_kinds:
            # No name for the record: it would hold these pictures while the next ones are read.
            cards.append(_card(prompts.record(number), shown, number, card_kinds))

    num_texts = len(shown.texts)
    about = f"all {num_texts:,}"
    if len(cards) < num_texts:
        about = f"{len(cards):,} of {num_texts:,}: the {count} worst, best and random ones by {metric}"

    # The empty kind shows all cards.
    kinds = ["", *chosen]
    if "questions" in prompts[0].record:
        kinds += ["right", "wrong"]

    environment = Environment(
        loader=PackageLoader("visllama.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    # The page's security policy runs a script with this hash, and no other.
    script_hash = hashlib.sha256(_SCRIPT.encode()).digest()
    page = environment.get_template("gallery.html.jinja").render(
        title=title,
        about=about,
        kinds=kinds,
        metrics=list(shown.scores),
        cards=cards,
        script=_SCRIPT,
        script_sha256=base64.b64encode(script_hash).decode(),
    )
    write_whole(path, page)


def _choose(shown: Shown, ranked: Sequence[int], count: int) -> dict[str, set[int]]:
    """Return the numbers of the texts that are shown, by kind.

    Args:
        shown: The texts and their scores.
        ranked: The numbers of all texts, from the worst to the best.
        count: The number of texts of each kind.
    """
    # The same random texts for every system, so that their pages can be compared.
    shuffled = np.random.default_rng(0).permutation(len(shown.texts)).tolist()
    chosen = {
        "worst": set(ranked[:count]),
        "best": set(ranked[::-1][:count]),
        "random": set(shuffled[:count]),
    }

    if any(shown.absent):
        num_absent = [len(objects) for objects in shown.absent]
        most_first = np.argsort(num_absent, kind="stable")[::-1].tolist()
        chosen[_HALLUCINATED] = {number for number in most_first[:count] if num_absent[number] > 0}
    return chosen


def _card(record: Mapping, shown: Shown, number: int, kinds: list[str]) -> dict[str, Any]:
    """Return the values of one card, as the template reads them.

    Args:
        record: The record of the text, with its pictures.
        shown: The texts and their scores.
        number: The number of the text.
        kinds: The kinds for which the text was chosen.
    """
    text = shown.texts[number]
    scores = {name: float(values[number]) for name, values in shown.scores.items()}
    score = next(iter(scores.values()))

    if "questions" in record:
        asked = record["questions"][0]
        question = asked["question"]
        references = asked["answers"]
        words = []
        kinds = [*kinds, "right" if score >= 0.5 else "wrong"]
    else:
        question = ""
        references = record["captions"]
        words = _words_of_caption(text, references)

    absent = shown.absent[number] if any(shown.absent) else ()
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
        # Each once, in their order.
        "absent": list(dict.fromkeys(absent)),
        "references": list(dict.fromkeys(references)),
    }


def _words_of_caption(caption: str, references: Sequence[str]) -> list[dict[str, str]]:
    """Return each word of a caption, and whether a reference has it."""
    known: set[str] = set()
    for reference in references:
        known.update(_words(reference))

    words = []
    for word in caption.split():
        # A word with a hyphen is several words here.
        is_known = known.issuperset(_words(word))
        words.append({"text": word, "kind": "found" if is_known else "other"})
    return words


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _thumbnail(image: bytes | Image.Image) -> str:
    """Return the address of a small copy of a picture, which holds the copy itself."""
    image = open_image(image)
    scale = _THUMBNAIL_PX / max(image.size)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))

    # A tiny picture is made larger without a blur, and JPEG would show its own patterns in it.
    if scale > 1:
        return data_address(image.resize((width, height), Image.Resampling.NEAREST), "png")
    return data_address(image.resize((width, height), Image.Resampling.BICUBIC), "jpeg")
