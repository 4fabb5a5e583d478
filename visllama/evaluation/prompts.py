"""The prompts that a model is judged on. Their texts are held in memory; a picture is read only when it is needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from visllama.data.order import permutation
from visllama.data.record import images_of
from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError
from visllama.images.decode import open_image

PICTURES = ("image", "images")
"""The keys of a record that hold its pictures."""
ImageFile = bytes | Image.Image
"""A picture as a record holds it: the content of a JPEG, PNG or WebP file, or a PIL image."""
ReadPictures = Callable[[int], list[ImageFile]]
"""A function that takes the number of a record, and returns the record's pictures."""


class Prompt(NamedTuple):
    """The beginning of one text that a model is to continue, and the pictures that are shown with it.

    Attributes:
        record: The record without its pictures: its `key`, and its `captions`, `questions` or `conversations`. In the
            prompts of a source, `questions` holds one question alone.
        shown: The number of the record whose pictures are shown, as `Prompts` hands it to its `read_pictures`; None
            shows no picture.
        num_images: The number of pictures that are shown.
    """

    record: Mapping
    shown: int | None
    num_images: int


class Prompts:
    """The prompts of an evaluation, as a sequence that can also read the pictures of a prompt.

    Args:
        prompts: The prompts, in the order in which they are answered. Those that show the same record's pictures have
            to be adjacent, so that `batches` keeps them together.
        read_pictures: A function that returns the pictures of a record by the record's number (`Prompt.shown`). It is
            called each time that pictures are needed, and none are kept: those of VQAv2 are 6 GB.
    """

    def __init__(self, prompts: Sequence[Prompt], read_pictures: ReadPictures) -> None:
        self._prompts = prompts
        self._read_pictures = read_pictures

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def pictures(self, prompt: Prompt) -> list[ImageFile]:
        """Read the pictures that are shown with a prompt, and return them as a list; without pictures it is empty."""
        if prompt.shown is None:
            return []
        return self._read_pictures(prompt.shown)

    def record(self, index: int) -> dict:
        """Return a copy of the record of prompt number `index` (from 0), with the prompt's pictures under `images`."""
        prompt = self._prompts[index]
        return {**prompt.record, "images": self.pictures(prompt)}

    def records(self) -> list[dict]:
        """Return a copy of each prompt's record in order, with the prompt's pictures under `images`.

        All pictures are in memory at once.
        """
        return [self.record(index) for index in range(len(self))]

    def batches(self, batch_size: int, first: int = 0) -> list[range]:
        """Split the prompts into batches, and return each batch as a range of prompt numbers, in order.

        Prompts that show the same picture are in one batch, so that the picture is decoded and encoded once. If more
        than `batch_size` prompts show the same picture, they fill several batches.

        Args:
            batch_size: The largest number of prompts in a batch.
            first: The number of the prompt that the first batch begins with, from 0; earlier prompts are left out.
        """
        batches: list[range] = []
        start = first
        while start < len(self):
            stop = min(start + batch_size, len(self))
            # The end of all prompts cuts no picture apart.
            if stop < len(self):
                stop = self._end_of_picture(start, stop)
            batches.append(range(start, stop))
            start = stop
        return batches

    def _end_of_picture(self, start: int, stop: int) -> int:
        """Return the largest prompt number up to `stop` at which a batch can end without splitting a picture's prompts.

        If all prompts from `start` to `stop` show the same picture, `stop` itself is returned.
        """
        end = stop
        while end > start and self._prompts[end].shown is not None:
            if self._prompts[end - 1].shown != self._prompts[end].shown:
                break
            end -= 1
        return stop if end == start else end

    # ---------------------------------------------------------------------------------------------------- controls

    def shuffled(self) -> Prompts:
        """Return new prompts with the same texts, each of which shows the pictures of another record.

        All prompts of a record get the pictures of the same other record, and every call chooses the same pairs of
        records. A prompt without pictures still shows none. If only one record has pictures, nothing is changed.
        """
        records = list(dict.fromkeys(prompt.shown for prompt in self if prompt.shown is not None))
        num_images = {prompt.shown: prompt.num_images for prompt in self}

        # Along a random cycle, so that no record but a single one is beside its own pictures.
        cycle = permutation(len(records), 0).tolist()
        successors = cycle[1:] + cycle[:1]
        donors = {}
        for place, successor in zip(cycle, successors, strict=True):
            donors[records[place]] = records[successor]

        changed = []
        for prompt in self:
            donor = donors.get(prompt.shown)
            changed.append(Prompt(prompt.record, donor, num_images.get(donor, 0)))
        return Prompts(changed, self._read_pictures)

    def blank(self) -> Prompts:
        """Return new prompts with the same texts, in which a gray picture of the same size replaces each picture.

        The gray pictures are PNG files. They are made when they are needed; the true picture is read for its size.
        """

        def read_gray(index: int) -> list[ImageFile]:
            pictures = self._read_pictures(index)
            return [_gray_file(*open_image(picture).size) for picture in pictures]

        return Prompts(self._prompts, read_gray)

    def without_pictures(self) -> Prompts:
        """Return new prompts with the same texts, none of which shows a picture."""
        changed = [Prompt(prompt.record, None, 0) for prompt in self]
        return Prompts(changed, self._read_pictures)


CONTROLS = {"shuffled_images": Prompts.shuffled, "blank_images": Prompts.blank}
"""The functions that turn prompts into those of a control, by the control's name.

A control shows wrong pictures. How far its scores fall shows how much of a caption comes from the picture.
"""


# Pictures of a data set have few different sizes.
@lru_cache(maxsize=64)
def _gray_file(width: int, height: int) -> bytes:
    """Return the PNG file of a gray picture."""
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG", compress_level=1)
    return file.getvalue()


def prompts_of_records(records: Sequence[Mapping]) -> Prompts:
    """Build one prompt for each of several records that are in memory; no file is read.

    Args:
        records: Records, each with a `key`, and with `image` or `images` if it shows pictures. A record with
            `questions` asks its first question, one with `conversations` asks for the last response, and any other
            record asks for a caption.

    Returns:
        The prompts, in the order of the records. Pictures are looked up in `records` whenever they are needed.
    """
    prompts = [_prompt(record, number) for number, record in enumerate(records)]
    return Prompts(prompts, lambda number: images_of(records[number]))


def prompts_of_source(source: Source, name: str, num_records: int | None = None) -> Prompts:
    """Read the records of a source, and return their prompts in the order of the source.

    A record with `questions` makes a prompt for each question; any other record makes one prompt. The pictures are not
    kept: each record is read again when its pictures are needed.

    Args:
        source: The source of an evaluation.
        name: The name of the evaluation, for messages.
        num_records: The number of records that are taken: a random choice, the same one in each call. None takes all
            records, and so does a number above theirs. A score over a part is not comparable to the score over all.

    Raises:
        ConfigError: If a record cannot be read, here or later when its pictures are needed.
    """

    def read(number: int) -> dict:
        try:
            return source.read(number)
        except BadRecord as error:
            raise ConfigError(f"evaluation.{name}.source: a record cannot be read: {error}") from error

    prompts = []
    for number in _chosen(len(source), num_records):
        prompt = _prompt(read(number), number)
        if "questions" not in prompt.record:
            prompts.append(prompt)
            continue
        for question in prompt.record["questions"]:
            record = {**prompt.record, "questions": [question]}
            prompts.append(prompt._replace(record=record))

    # Each record is read again for its pictures: all of them would not fit the memory.
    return Prompts(prompts, lambda number: images_of(read(number)))


def _chosen(num_records: int, num_wanted: int | None) -> Sequence[int]:
    """Return the numbers of the records that are taken, in the order of the source."""
    if num_wanted is None or num_wanted >= num_records:
        return range(num_records)
    drawn = permutation(num_records, 0)[:num_wanted]
    return sorted(drawn.tolist())


def _prompt(record: Mapping, number: int) -> Prompt:
    """Return the prompt of a record.

    Args:
        record: The record.
        number: The number of the record in its source.
    """
    num_images = len(images_of(record))
    text = {key: value for key, value in record.items() if key not in PICTURES}
    return Prompt(text, number if num_images else None, num_images)
