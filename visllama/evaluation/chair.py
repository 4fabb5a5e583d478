"""CHAIR: how often captions name an object that is not in their picture, where objects are COCO's 80 categories.

An object counts as present in a picture if an annotator drew it, or a reference names it. Which category a caption
names is looked up in a list of the names of each category ("puppy" is a dog). The list here is our own; another one,
for example the published one, can be read from a file. Figures differ a little with the list.

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
    """Find the categories of objects that captions name, by a list of the names of each category.

    The plural of each name counts as a name too.

    Args:
        path: A text file with one category on each line: the category's own name, then its other names, separated by
            commas. A line that begins with # is a comment.

    Attributes:
        categories: The categories' own names, in the order of the file.

    Raises:
        ConfigError: If the file cannot be read, or a name is listed for two categories.
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
        """Return the category of each object that a caption names, in the order of the caption, with repetitions.

        "A puppy beside two dogs" gives `["dog", "dog"]`. Case does not count, nor does punctuation between words. Of
        names that begin at the same word the longest is taken: a "hot dog" is no dog.
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
    """Read COCO's instance annotations, and return which categories the annotators drew in each image.

    Args:
        path: The file of instance annotations, for example `instances_val2014.json`.
        names: The names of the categories, which have to include every category of the file.

    Returns:
        The categories of each image by the image's id as text. The set of an image without an object is empty.

    Raises:
        ConfigError: If the file cannot be read, has another layout, or has a category that `names` lacks.
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
"""The number of columns of CHAIR's counts: how many absent objects a caption names, and how many objects in all."""


class Hallucinations(NamedTuple):
    """The objects that captions name although they are not in their pictures ("absent" objects).

    Attributes:
        counts: How many absent objects each caption names, and how many objects in all, shape `(images 2)`. An object
            that is named twice counts twice.
        absent: The categories of the absent objects that each caption names, in the order of the caption, with
            repetitions.
    """

    counts: np.ndarray
    absent: list[list[str]]


def chair_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return CHAIRs and CHAIRi by these names, each as a `CorpusMetric` with values in [0, 1]; lower is better.

    CHAIRs is the share of captions that name an absent object. CHAIRi is the share of absent objects among all objects
    that the captions name, and 0 if they name none.

    Args:
        counts: The `counts` of `Hallucinations`, shape `(images 2)`.
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
    """Find the objects that captions name although neither an annotator drew them nor a reference names them.

    Args:
        captions: The caption of each image.
        references: The references of each image, in the same order.
        drawn: The categories that annotators drew in each image, in the same order.
        names: The names by which captions and references are searched.

    Returns:
        The absent objects, in the order of the captions.

    Raises:
        ValueError: If the three sequences are of different lengths.
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
    """Return the names of COCO's categories, read once for each path and then kept.

    Args:
        path: A file as `ObjectNames` reads it; None means visllama's own list, `object_names.txt`.

    Raises:
        ConfigError: If the file cannot be read, or a name is listed for two categories.
    """
    return ObjectNames() if path is None else ObjectNames(Path(path))


def check_objects(ids: Sequence[object], drawn: Mapping[str, frozenset[str]], where: str) -> None:
    """Check that the instance annotations cover every image; an image in which nothing was drawn is covered too.

    Args:
        ids: The ids of the images, numbers or texts.
        drawn: The categories that annotators drew in each image, by the image's id as text, from `read_objects`.
        where: The config key and the file, as the beginning of the message.

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
