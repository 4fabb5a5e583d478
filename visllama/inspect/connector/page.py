"""Write the page `inspect_connector.html`, which shows the results of inspecting a connector.

One file that opens offline and runs no script. jinja2 escapes all that comes from data, and the page forbids itself
scripts and addresses. The template is `inspect/templates/connector.html.jinja`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
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
"""Where there are more vectors, the readings are folded, and the words' attention to each vector is not drawn."""
_MOST_READ = 64
"""Where there are more vectors, the page has no readings of single pictures: they would be most of it."""
_PHOTO_PX = 160
"""From this size on a picture is written as a JPEG: it is a photo."""


class Chip(NamedTuple):
    """A token of the language model that the page shows for an image vector.

    Attributes:
        token: The token as the tokenizer writes it.
        score: The token's cosine ("0.31") or its probability ("12%").
        is_own: Whether the token is a word of the picture's own reference captions.
    """

    token: str
    score: str
    is_own: bool


class VectorRow(NamedTuple):
    """The tokens of the language model that fit one image vector of a picture best.

    Attributes:
        vector: The number of the vector among the K image vectors of the picture, counted from 1.
        nearest: The tokens whose input embeddings are nearest to the vector, best first.
        unembedding: The tokens that the language model's output layer predicts from the vector, best first; empty where
            `Lens.can_unembed` is false.
    """

    vector: int
    nearest: list[Chip]
    unembedding: list[Chip]


class WordMap(NamedTuple):
    """A word of a caption, and its attention to the image vectors.

    Attributes:
        word: The word.
        share: The share of the word's attention that all image vectors have together, in [0, 1].
        overlay: A heat map to lay over the picture, as a data address; "" where the vectors are not the patches of a
            square.
        cells: For each vector its share of the word's attention, divided by the largest share that any word of this
            caption has for any vector; in [0, 1].
    """

    word: str
    share: float
    overlay: str
    cells: list[float]


class Card(NamedTuple):
    """A picture as the page shows it.

    Attributes:
        picture: The picture's results.
        address: The picture itself, as a data address.
        cider: The CIDEr of its caption, x100, as text.
        rows: The tokens of each of its image vectors; empty where there are more than 64 vectors.
        maps: The attention of each word of its caption.
    """

    picture: ShownPicture
    address: str
    cider: str
    rows: list[VectorRow]
    maps: list[WordMap]


def write_page(path: Path, command: str, study: ConnectorStudy, pixels: Sequence[UInt8[Tensor, "3 H W"]]) -> None:
    """Write the results of inspecting a connector as one HTML file, whole or not at all.

    Args:
        path: The path of the HTML file; a file that is there is replaced.
        command: The command that was typed, as the page shows it.
        study: The results.
        pixels: The pixels of each of `study.pictures`, in their order, as the vision encoder sees them.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    # A name that the template has and this call has not is an error, not an empty text.
    environment = Environment(
        loader=PackageLoader("visllama.inspect"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("connector.html.jinja")

    # Vectors that are patches of a square are drawn over the picture, others as a row of cells.
    is_grid = study.about["is_patch_grid"]
    cards = [_card(picture, image, is_grid) for picture, image in zip(study.pictures, pixels, strict=True)]
    page = template.render(
        command=command,
        about=study.about,
        study=study,
        chart=LossChart(study),
        strips=norm_strips(study.norms),
        cards=cards,
        is_grid=is_grid,
        is_small=study.about["num_image_tokens"] <= _MOST_OPEN,
    )
    write_whole(path, page)


def _card(picture: ShownPicture, pixels: UInt8[Tensor, "3 H W"], is_grid: bool) -> Card:
    # Torch has the channels first, Pillow last.
    channels_last = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(channels_last)
    file_format = "jpeg" if image.width >= _PHOTO_PX else "png"

    return Card(
        picture=picture,
        address=data_address(image, file_format),
        cider=cider(picture.cider),
        rows=_vector_rows(picture),
        maps=_word_maps(picture, is_grid),
    )


def _vector_rows(picture: ShownPicture) -> list[VectorRow]:
    """Return the tokens of each vector of a picture; an empty list where there are more than 64 vectors."""
    reading = picture.reading
    if len(reading.nearest) > _MOST_READ:
        return []

    own_words = words_of(picture.references)
    rows = []
    for k, nearest in enumerate(reading.nearest):
        unembedding = [] if reading.unembedding is None else reading.unembedding[k]
        row = VectorRow(
            vector=k + 1,
            nearest=[_chip(token, f"{cosine:.2f}", own_words) for token, cosine in nearest],
            unembedding=[_chip(token, f"{probability:.0%}", own_words) for token, probability in unembedding],
        )
        rows.append(row)
    return rows


def _chip(token: str, score: str, own_words: set[str]) -> Chip:
    # SentencePiece and byte-level BPE write the space before a word as a sign of its own.
    word = token.lstrip("▁Ġ").lower()
    return Chip(token, score, is_own=word in own_words)


def _word_maps(picture: ShownPicture, is_grid: bool) -> list[WordMap]:
    """Return for each word of a picture's caption its attention to the image vectors."""
    shares = np.array(picture.attention, dtype=np.float32)
    # Shared by all words of the picture, so that their colours can be compared; 1 where there is no word.
    largest = shares.max(initial=0) or 1

    maps = []
    for word, row in zip(picture.words, shares, strict=True):
        overlay = ""
        if is_grid:
            side = math.isqrt(len(row))
            overlay = data_address(heat_overlay(row.reshape(side, side)))

        cells = [round(float(share / largest), 3) for share in row]
        maps.append(WordMap(word, float(row.sum()), overlay, cells))
    return maps
