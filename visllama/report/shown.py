"""Collect what the page shows of an image from the runs' folders: its picture, both systems' texts, and the references.

Pictures come out of the evaluations' galleries, which are pages of somebody else's: they are read as data, decoded, and
written anew. No source of records is opened: a run of somebody else's could name any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_predictions, read_references
from visllama.evaluation.gallery_cards import GalleryCard, decode_picture, read_cards
from visllama.evaluation.vqa import read_answers
from visllama.images.inline import data_address
from visllama.report.judged_run import OF_FILES, JudgedRun
from visllama.report.paired import ImageDifference

_MOST_PICTURE_PX = 512
_MOST_REFERENCES = 10
_MOST_CHARACTERS = 1000
_PHOTO = "data:image/jpeg"
T = TypeVar("T")


class Shown(NamedTuple):
    """An image, or a question about one, with the captions or answers of both systems.

    Attributes:
        difference: The scores of both systems, with the id.
        pictures: The pictures as data addresses, which hold them whole; empty where neither run's gallery
            page has a usable picture.
        question: The question; "" where the image was captioned.
        first: The caption or answer of the first system; None where its folder does not hold it.
        second: The caption or answer of the second system; None where its folder does not hold it.
        references: Up to ten different captions or answers that people gave; empty where neither folder holds any.
    """

    difference: ImageDifference
    pictures: list[str]
    question: str
    first: str | None
    second: str | None
    references: list[str]


class Texts:
    """The captions or answers of one run in one evaluation, with references and gallery, read from the run's files.

    A gallery is the page `gallery.html` of an evaluation; each of its cards shows a picture with the text about it. A
    file that is not there, or cannot be read, counts as empty. The files of a run of `evaluate predictions=FILE` are
    those that its `metrics.json` names.

    Args:
        run: The run.
        evaluation: The evaluation's name in the run.
        task: What is judged: "caption", or "vqa" (answers to questions).

    Attributes:
        texts: The caption or answer by the id of the image or question.
        references: The reference captions by the id of the image; empty for answers.
        cards: The gallery's cards by the id of the image or question.
    """

    def __init__(self, run: JudgedRun, evaluation: str, task: str) -> None:
        is_caption = task == "caption"
        if evaluation == OF_FILES:
            # Such a run names its files; they are read as such files alone, and their ids have to be the same.
            folder = run.folder
            texts = run.provenance.get("predictions", "")
            references = run.provenance.get("references", "")
            texts_file = Path(str(texts))
            references_file = Path(str(references))
        else:
            folder = run.folder / "evaluations" / evaluation
            texts_file = folder / ("captions.json" if is_caption else "answers.json")
            references_file = folder / "references.json"

        read_texts = read_predictions if is_caption else read_answers
        self.texts: dict[str, str] = _read_if_there(texts_file, read_texts)
        # Only captions have such a file; the references of answers stand in the gallery.
        self.references: dict[str, list[str]] = {}
        if is_caption:
            self.references = _read_if_there(references_file, read_references)
        cards = read_cards(folder / "gallery.html")
        self.cards = {card.id: card for card in cards}


def _read_if_there(path: Path, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """Return what a file holds, by id; an empty dictionary where there is no such file, or it holds something else."""
    if not path.is_file():
        return {}
    try:
        return read(path)
    except ConfigError:
        return {}


def show(changed: Sequence[ImageDifference], first: Texts, second: Texts) -> list[Shown]:
    """Return the pictures and texts that the page `report.html` shows of each image or question, in the same order.

    Args:
        changed: The images or questions.
        first: The texts of the first system.
        second: The texts of the second system.
    """
    return [_show(image, first, second) for image in changed]


def _show(image: ImageDifference, first: Texts, second: Texts) -> Shown:
    cards = [texts.cards[image.id] for texts in (first, second) if image.id in texts.cards]
    question = ""
    references = first.references.get(image.id) or second.references.get(image.id) or []
    if cards:
        # Both systems were asked the same, so either card has it.
        question = cards[0].texts["question"].strip()
        references = references or cards[0].references

    # The references of an image may repeat each other.
    different_references = list(dict.fromkeys(references))
    shown_references = different_references[:_MOST_REFERENCES]
    return Shown(
        difference=image,
        pictures=_pictures(cards),
        question=_cut(question),
        first=_text(image.id, first),
        second=_text(image.id, second),
        references=[_cut(reference) for reference in shown_references],
    )


def _text(image_id: str, texts: Texts) -> str | None:
    """Return what a system wrote, from its file of texts or, where that is not there, from its gallery."""
    if image_id in texts.texts:
        return _cut(texts.texts[image_id])
    if image_id in texts.cards:
        return _cut(texts.cards[image_id].texts["said"])
    return None


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}..."


def _pictures(cards: Sequence[GalleryCard]) -> list[str]:
    """Return the pictures of the first card that has some, each written anew."""
    # Both galleries show the same image: the pictures of one are enough.
    for card in cards:
        pictures = []
        for address in card.addresses:
            picture = _encode_again(address)
            if picture is not None:
                pictures.append(picture)
        if pictures:
            return pictures
    return []


def _encode_again(address: str) -> str | None:
    """Return a picture encoded again by us; None where it does not decode or is larger than galleries make them."""
    image = decode_picture(address)
    # A larger one is not of our galleries, and would make the page heavy.
    if image is None or max(image.size) > _MOST_PICTURE_PX:
        return None

    file_format = "jpeg" if address.startswith(_PHOTO) else "png"
    return data_address(image.convert("RGB"), file_format)


def ids_with_pictures(texts: Sequence[Texts]) -> set[str]:
    """Return the ids of the images or questions for which the gallery of at least one of these runs has a picture.

    Args:
        texts: The texts of each run.
    """
    ids = set()
    for of_run in texts:
        ids.update(card.id for card in of_run.cards.values() if card.addresses)
    return ids
