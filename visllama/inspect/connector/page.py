"""The page `inspect_connector.html`: what a connector says, for a person to understand in a minute.

One file that opens offline and runs no script. jinja2 escapes all that comes from data, and the page forbids itself
scripts and addresses. The template is `inspect/templates/connector.html.jinja`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from visllama.files import write_whole
from visllama.images.inline import data_address
from visllama.inference.attention import heat_overlay
from visllama.inspect.connector.charts import LossChart, norm_strips
from visllama.inspect.connector.findings import cider
from visllama.inspect.connector.study import ConnectorStudy, ShownPicture
from visllama.inspect.connector.words import words_of

_MOST_OPEN = 16
"""Of more vectors the readings are folded, and the words' attention to each is not drawn."""
_MOST_READ = 64
"""Of more vectors the page has no readings of each picture: they would be most of it."""
_PHOTO_PX = 160
"""From this size on a picture is written as a JPEG: it is a photo."""


class Chip(NamedTuple):
    """A token on the page, its score in words, and whether it is a word of the picture's references."""

    token: str
    score: str
    is_own: bool


class VectorRow(NamedTuple):
    """How one vector of a picture is read."""

    vector: int
    nearest: list[Chip]
    unembedding: list[Chip]


class WordMap(NamedTuple):
    """A word of a caption, and where it looked.

    Attributes:
        word: The word.
        share: The share of its attention that all image vectors have together.
        overlay: The address of the picture that is laid over the picture; "" where the vectors are no patches.
        cells: For each vector its share of attention over the largest of the caption, in [0, 1].
    """

    word: str
    share: float
    overlay: str
    cells: list[float]


class Card(NamedTuple):
    """A picture as the page shows it."""

    picture: ShownPicture
    address: str
    cider: str
    rows: list[VectorRow]
    maps: list[WordMap]


def write_page(path: Path, command: str, study: ConnectorStudy, pixels: Sequence[Tensor]) -> None:
    """Write the page.

    Args:
        path: Path of the page.
        command: What was typed.
        study: What was found.
        pixels: The pictures that are shown, `(3, H, W)` uint8, as the encoder sees them.
    """
    environment = Environment(
        loader=PackageLoader("visllama.inspect"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    is_grid = study.about["is_patch_grid"]
    cards = [_card(picture, image, is_grid) for picture, image in zip(study.pictures, pixels, strict=True)]
    text = environment.get_template("connector.html.jinja").render(
        command=command,
        about=study.about,
        study=study,
        chart=LossChart(study),
        strips=norm_strips(study.norms),
        cards=cards,
        is_grid=is_grid,
        is_small=study.about["num_image_tokens"] <= _MOST_OPEN,
    )
    write_whole(path, text)


def _card(picture: ShownPicture, pixels: Tensor, is_grid: bool) -> Card:
    own = words_of(picture.references)
    reading = picture.reading
    rows = []
    for k, nearest in enumerate(reading.nearest if len(reading.nearest) <= _MOST_READ else []):
        unembedded = [] if reading.unembedding is None else reading.unembedding[k]
        chips = [_chip(token, f"{cosine:.2f}", own) for token, cosine in nearest]
        rows.append(VectorRow(k + 1, chips, [_chip(token, f"{share:.0%}", own) for token, share in unembedded]))

    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    address = data_address(image, "jpeg" if image.width >= _PHOTO_PX else "png")
    return Card(picture, address, cider(picture.cider), rows, _word_maps(picture, is_grid))


def _chip(token: str, score: str, own: set[str]) -> Chip:
    return Chip(token, score, token.lstrip("▁Ġ").lower() in own)


def _word_maps(picture: ShownPicture, is_grid: bool) -> list[WordMap]:
    shares = np.array(picture.attention, dtype=np.float32)
    largest = shares.max(initial=0) or 1
    maps = []
    for word, row in zip(picture.words, shares, strict=True):
        overlay = ""
        if is_grid:
            side = math.isqrt(len(row))
            overlay = data_address(heat_overlay(row.reshape(side, side)))
        maps.append(WordMap(word, float(row.sum()), overlay, [round(float(share / largest), 3) for share in row]))
    return maps
