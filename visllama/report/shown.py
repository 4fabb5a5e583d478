"""What the page shows of an image: its picture, both texts, and the references, as far as the runs' folders hold them.

Pictures come out of the evaluations' galleries, which are pages of somebody else's: they are read as data, decoded, and
written anew. No source of records is opened: a run of somebody else's could name any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """An image, or a question about one, with what both systems said.

    Attributes:
        difference: Its scores.
        pictures: The addresses of its pictures, which hold them whole; none where no gallery shows it.
        question: What was asked; "" where it was captioned.
        first: What the first system said; None where that is not known.
        second: What the second one said.
        references: What people said.
    """

    difference: ImageDifference
    pictures: list[str]
    question: str
    first: str | None
    second: str | None
    references: list[str]


class Texts:
    """The texts, references and cards of an evaluation in the folder of a run.

    Args:
        run: The run.
        evaluation: The evaluation's name in it.
        task: What is judged.
    """

    def __init__(self, run: JudgedRun, evaluation: str, task: str) -> None:
        folder = run.folder if evaluation == OF_FILES else run.folder / "evaluations" / evaluation
        is_caption = task == "caption"
        texts = folder / ("captions.json" if is_caption else "answers.json")
        references: Path | None = folder / "references.json"
        if evaluation == OF_FILES:
            # Such a run names its files; they are read as such files alone, and their ids have to be the same.
            texts = Path(str(run.provenance.get("predictions", "")))
            references = Path(str(run.provenance.get("references", ""))) if is_caption else None
        self.texts = _read_if_there(texts, read_predictions if is_caption else read_answers)
        self.references = _read_if_there(references, read_references) if is_caption else {}
        self.cards = {card.id: card for card in read_cards(folder / "gallery.html")}


def _read_if_there(path: Path | None, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """Return what a file holds by id; nothing where it is not there, or is none such."""
    if path is None or not path.is_file():
        return {}
    try:
        return {str(key): value for key, value in read(path).items()}
    except ConfigError:
        return {}


def show(changed: Sequence[ImageDifference], first: Texts, second: Texts) -> list[Shown]:
    """Return what the page shows of each of these images."""
    return [_show(image, first, second) for image in changed]


def _show(image: ImageDifference, first: Texts, second: Texts) -> Shown:
    cards = [texts.cards[image.id] for texts in (first, second) if image.id in texts.cards]
    references = first.references.get(image.id) or second.references.get(image.id)
    if not references and cards:
        references = cards[0].references
    references = list(dict.fromkeys(references or []))
    return Shown(
        image,
        _pictures(cards),
        _cut(cards[0].texts["question"].strip()) if cards else "",
        _text(image.id, first),
        _text(image.id, second),
        [_cut(reference) for reference in references[:_MOST_REFERENCES]],
    )


def _text(own_id: str, texts: Texts) -> str | None:
    if own_id in texts.texts:
        return _cut(texts.texts[own_id])
    if own_id in texts.cards:
        return _cut(texts.cards[own_id].texts["said"])
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _pictures(cards: Sequence[GalleryCard]) -> list[str]:
    """Return the pictures of the first card that has some, each written anew."""
    for card in cards:
        written = [_written_anew(address) for address in card.addresses]
        pictures = [picture for picture in written if picture is not None]
        if pictures:
            return pictures
    return []


def _written_anew(address: str) -> str | None:
    image = decode_picture(address)
    if image is None or max(image.size) > _MOST_PICTURE_PX:
        return None
    return data_address(image.convert("RGB"), "jpeg" if address.startswith(_PHOTO) else "png")


def ids_with_pictures(texts: Sequence[Texts]) -> set[str]:
    """Return the ids of which a gallery shows a picture."""
    cards: list[Mapping[str, GalleryCard]] = [each.cards for each in texts]
    return {own_id for each in cards for own_id, card in each.items() if card.addresses}
