"""CHAIR: how often a caption names an object that is not in its picture, by COCO's 80 categories.

An object is in a picture if an annotator drew it, or a reference names it. Words are looked up in a list of names of
each category; the one here is our own, and another one (the published one, say) is read from a file: figures differ a
little with the list.

Reference:
    Rohrbach et al. 2018, "Object hallucination in image captioning", arXiv:1809.02156.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_json
from visllama.evaluation.statistics import CorpusMetric, mean_metric
from visllama.files import read_regular

_NAMES = Path(__file__).with_name("object_names.txt")
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "knife": "knives", "sheep": "sheep",
    "mouse": "mice", "skis": "skis", "scissors": "scissors", "calf": "calves", "goose": "geese", "loaf": "loaves",
    "policeman": "policemen", "fireman": "firemen", "fisherman": "fishermen", "snowman": "snowmen",
}  # fmt: skip
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


class ObjectNames:
    """The names by which captions call COCO's categories.

    Args:
        path: A text file with a category a line, its own name first and others behind it, separated by commas.

    Raises:
        ConfigError: If the file cannot be read, or a name stands for two categories.
    """

    def __init__(self, path: Path = _NAMES) -> None:
        try:
            lines = read_regular(path).splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: no list of objects: {error}") from error
        self.categories: list[str] = []
        self._category_of: dict[tuple[str, ...], str] = {}
        for line in lines:
            names = [name.strip().lower() for name in line.split(",") if name.strip()]
            if not names or names[0].startswith("#"):
                continue
            self.categories.append(names[0])
            for name in names:
                for form in (name, _plural(name)):
                    self._add(path, tuple(form.split()), names[0])
        self._most_words = max(map(len, self._category_of), default=0)

    def _add(self, path: Path, words: tuple[str, ...], category: str) -> None:
        known = self._category_of.setdefault(words, category)
        if known != category:
            raise ConfigError(f"{path}: {' '.join(words)!r} stands for {known} and for {category}: leave one out")

    def mentioned(self, caption: str) -> list[str]:
        """Return the category of each object that a caption names, in its order; the longest name wins ("hot dog")."""
        words = _WORD.findall(caption.lower())
        found = []
        place = 0
        while place < len(words):
            for length in range(min(self._most_words, len(words) - place), 0, -1):
                category = self._category_of.get(tuple(words[place : place + length]))
                if category is not None:
                    found.append(category)
                    place += length
                    break
            else:
                place += 1
        return found


def _plural(name: str) -> str:
    *before, last = name.split()
    if last in _PLURALS:
        return " ".join([*before, _PLURALS[last]])
    if last.endswith(("s", "x", "ch", "sh")):
        return " ".join([*before, f"{last}es"])
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return " ".join([*before, f"{last[:-1]}ies"])
    return " ".join([*before, f"{last}s"])


def read_objects(path: Path, names: ObjectNames) -> dict[str, frozenset[str]]:
    """Read which categories an annotator drew in each image, from COCO's instance annotations.

    Returns:
        The categories by the image's id as text; an image without an object has none.

    Raises:
        ConfigError: For another layout, or a category that the list of names does not have.
    """
    content = read_json(path)
    try:
        category_of = {row["id"]: str(row["name"]).lower() for row in content["categories"]}
        drawn: dict[str, set[str]] = {str(row["id"]): set() for row in content["images"]}
        for row in content["annotations"]:
            drawn[str(row["image_id"])].add(category_of[row["category_id"]])
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: no instance annotations of COCO (they hold categories, images and annotations with category_id): "
            f"{error!r}"
        ) from error
    unknown = sorted(set(category_of.values()) - set(names.categories))
    if unknown:
        raise ConfigError(f"{path}: {len(unknown)} categories have no names, first {', '.join(unknown[:5])}")
    return {image: frozenset(categories) for image, categories in drawn.items()}


NUM_COUNTS = 2
"""What CHAIR counts in a caption: the names of absent objects, and all names of objects."""


class Hallucinations(NamedTuple):
    """What captions say that is not there.

    Attributes:
        counts: What is counted in each caption, shape `(images 2)`.
        absent: The absent categories that each caption names.
    """

    counts: np.ndarray
    absent: list[list[str]]


def chair_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return CHAIRs, the share of captions that name an absent object, and CHAIRi, the share of all names.

    Args:
        counts: What is counted in each caption, shape `(images 2)`. Lower figures are better.
    """
    return {"CHAIRs": mean_metric(counts[:, 0] > 0), "CHAIRi": CorpusMetric(counts, _share)}


def chair(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    drawn: Sequence[frozenset[str]],
    names: ObjectNames,
) -> Hallucinations:
    """Find the objects that captions name and that are not in their pictures.

    Args:
        captions: A caption of each image.
        references: The references of each image.
        drawn: The categories that annotators drew in each image.
        names: The names of the categories.
    """
    absent = []
    num_named = []
    for caption, texts, there in zip(captions, references, drawn, strict=True):
        told = {category for text in texts for category in names.mentioned(text)}
        named = names.mentioned(caption)
        absent.append([category for category in named if category not in there | told])
        num_named.append(len(named))
    num_absent = [len(categories) for categories in absent]
    return Hallucinations(np.stack([num_absent, num_named], axis=1).astype(float), absent)


def _share(sums: np.ndarray) -> np.ndarray:
    """Return the share of absent names; of captions that name nothing it is none."""
    part = sums[..., 0]
    whole = sums[..., 1]
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole != 0)


@cache
def object_names(path: str | None = None) -> ObjectNames:
    """Return the names of COCO's categories, ours or those of a file."""
    return ObjectNames() if path is None else ObjectNames(Path(path))


def check_objects(ids: Sequence[object], drawn: Mapping[str, frozenset[str]], where: str) -> None:
    """Check that annotators have looked at each image.

    Raises:
        ConfigError: Naming the first five that are not in the annotations.
    """
    missing = [str(image_id) for image_id in ids if str(image_id) not in drawn]
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} images are not in it, first {', '.join(missing[:5])}: give the instances of the "
            f"split that is judged, for example instances_val2014.json"
        )
