"""CHAIR: how often a caption names an object that is not in its picture, by COCO's 80 categories.

An object is in a picture if an annotator drew it, or a reference names it. Words are looked up in a list of names of
each category. The list here is our own; another one, for example the published one, can be read from a file. Figures
differ a little with the list.

Reference:
    Rohrbach et al. 2018, "Object hallucination in image captioning", arXiv:1809.02156.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_json
from visllama.evaluation.statistics import CorpusMetric, mean_metric
from visllama.files import read_regular

_NAMES = Path(__file__).with_name("object_names.txt")
_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "knife": "knives",
    "sheep": "sheep",
    "mouse": "mice",
    "skis": "skis",
    "scissors": "scissors",
    "calf": "calves",
    "goose": "geese",
    "loaf": "loaves",
    "policeman": "policemen",
    "fireman": "firemen",
    "fisherman": "fishermen",
    "snowman": "snowmen",
}
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


class ObjectNames:
    """The names by which captions call COCO's categories.

    Args:
        path: A text file with one category on each line: the category's own name, then its other names, separated by
            commas. A line that begins with # is a comment.

    Attributes:
        categories: The categories' own names, in the order of the file.

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

            category = names[0]
            self.categories.append(category)
            for name in names:
                self._add(path, name, category)
                self._add(path, _plural(name), category)

        # A caption is searched for names of up to this many words.
        self._most_words = max(map(len, self._category_of), default=0)

    def _add(self, path: Path, name: str, category: str) -> None:
        """Add a name of a category; a name that another category has is refused."""
        words = tuple(name.split())
        known = self._category_of.setdefault(words, category)
        if known != category:
            raise ConfigError(f"{path}: {' '.join(words)!r} stands for {known} and for {category}: leave one out")

    def mentioned(self, caption: str) -> list[str]:
        """Return the category of each object that a caption names, in the order of the caption.

        Of names that begin at the same word the longest one counts: a "hot dog" is no dog.
        """
        words = _WORD.findall(caption.lower())
        categories = []
        place = 0
        while place < len(words):
            # From the longest possible name down to one word.
            longest = min(self._most_words, len(words) - place)
            for length in range(longest, 0, -1):
                name = tuple(words[place : place + length])
                category = self._category_of.get(name)
                if category is not None:
                    categories.append(category)
                    place += length
                    break
            else:
                # No name begins at this word.
                place += 1
        return categories


def _plural(name: str) -> str:
    """Return a name whose last word is in the plural."""
    *before, last = name.split()
    if last in _PLURALS:
        plural = _PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        plural = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        plural = f"{last[:-1]}ies"
    else:
        plural = f"{last}s"
    return " ".join([*before, plural])


def read_objects(path: Path, names: ObjectNames) -> dict[str, frozenset[str]]:
    """Read which categories an annotator drew in each image, from COCO's instance annotations.

    Args:
        path: The file of instance annotations.
        names: The list of names in which captions are looked up.

    Returns:
        The categories of each image by the image's id as text. The set of an image without an object is empty.

    Raises:
        ConfigError: If the file has another layout, or a category that the list of names does not have.
    """
    # Anybody may have written the file: what is laid out otherwise raises one of the two errors below.
    content: Any = read_json(path)
    try:
        category_of = {row["id"]: str(row["name"]).lower() for row in content["categories"]}
        drawn: dict[str, set[str]] = {str(row["id"]): set() for row in content["images"]}
        for row in content["annotations"]:
            image_id = str(row["image_id"])
            category = category_of[row["category_id"]]
            drawn[image_id].add(category)
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: no instance annotations of COCO (they hold categories, images and annotations with category_id): "
            f"{error!r}"
        ) from error

    unknown = sorted(set(category_of.values()) - set(names.categories))
    if unknown:
        first = ", ".join(unknown[:5])
        raise ConfigError(f"{path}: {len(unknown)} categories have no names, first {first}")

    return {image: frozenset(categories) for image, categories in drawn.items()}


NUM_COUNTS = 2
"""The number of columns of counts: the names of absent objects in a caption, and all names of objects in it."""


class Hallucinations(NamedTuple):
    """The objects that captions name and that are not in their pictures.

    Attributes:
        counts: The number of names of absent objects, and of all objects, in each caption, shape `(images 2)`.
        absent: The absent categories that each caption names, in the order of the caption.
    """

    counts: np.ndarray
    absent: list[list[str]]


def chair_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return CHAIRs and CHAIRi by name; lower figures are better.

    CHAIRs is the share of captions that name an absent object, CHAIRi the share of absent objects among all names.

    Args:
        counts: What is counted in each caption, shape `(images 2)`.
    """
    names_absent_object = counts[:, 0] > 0
    return {
        "CHAIRs": mean_metric(names_absent_object),
        "CHAIRi": CorpusMetric(counts, _share),
    }


def chair(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    drawn: Sequence[frozenset[str]],
    names: ObjectNames,
) -> Hallucinations:
    """Return the objects that captions name and that are not in their pictures.

    Args:
        captions: The caption of each image.
        references: The references of each image.
        drawn: The categories that annotators drew in each image.
        names: The names of the categories.
    """
    absent = []
    num_named = []
    for caption, texts, drawn_categories in zip(captions, references, drawn, strict=True):
        # Annotators do not draw every object, so one that a reference names is in the picture too.
        present = set(drawn_categories)
        for text in texts:
            present.update(names.mentioned(text))

        named = names.mentioned(caption)
        absent.append([category for category in named if category not in present])
        num_named.append(len(named))

    num_absent = [len(categories) for categories in absent]
    counts = np.stack([num_absent, num_named], axis=1).astype(float)
    return Hallucinations(counts, absent)


def _share(sums: np.ndarray) -> np.ndarray:
    """Return the share of absent names; where captions name no object it is 0."""
    num_absent = sums[..., 0]
    num_named = sums[..., 1]
    zeros = np.zeros_like(num_named)
    return np.divide(num_absent, num_named, out=zeros, where=num_named != 0)


@cache
def object_names(path: str | None = None) -> ObjectNames:
    """Return the names of COCO's categories, ours or those of a file."""
    return ObjectNames() if path is None else ObjectNames(Path(path))


def check_objects(ids: Sequence[object], drawn: Mapping[str, frozenset[str]], where: str) -> None:
    """Check that every image is in the annotations, whether an object was drawn in it or not.

    Args:
        ids: The ids of the images.
        drawn: The categories that annotators drew in each image, by the image's id as text.
        where: The config key and the file, for the message.

    Raises:
        ConfigError: If images are not in the annotations, naming the first five.
    """
    missing = [str(image_id) for image_id in ids if str(image_id) not in drawn]
    if missing:
        first = ", ".join(missing[:5])
        raise ConfigError(
            f"{where}: {len(missing)} images are not in it, first {first}: give the instances of the "
            f"split that is judged, for example instances_val2014.json"
        )
