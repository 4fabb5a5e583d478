"""The prompts that a model is judged on: their texts are read at once, their pictures when their turn comes."""

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
ReadPictures = Callable[[int], list[ImageFile]]


class Prompt(NamedTuple):
    """The beginning of one text that a model is to continue, and the pictures that are shown with it.

    Attributes:
        record: The record without its pictures; a record of questions holds only one question here.
        shown: The number of the record whose pictures are shown; None shows no picture.
        num_images: The number of pictures of that record.
    """

    record: Mapping
    shown: int | None
    num_images: int


class Prompts:
    """The prompts of an evaluation; prompts on the same picture stand one behind the other.

    Args:
        prompts: The prompts.
        read_pictures: A function that returns the pictures of a record by the record's number. Pictures are read when
            they are needed, and never all held: those of VQAv2 are 6 GB.
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
        """Return the pictures that are shown with a prompt: none, one or several."""
        if prompt.shown is None:
            return []
        return self._read_pictures(prompt.shown)

    def record(self, index: int) -> dict:
        """Return a prompt's record with the pictures that are shown with it."""
        prompt = self._prompts[index]
        return {**prompt.record, "images": self.pictures(prompt)}

    def records(self) -> list[dict]:
        """Return every prompt's record with the pictures that are shown with it, all of them in memory."""
        return [self.record(index) for index in range(len(self))]

    def batches(self, batch_size: int, first: int = 0) -> list[range]:
        """Return the numbers of the prompts of each batch, from prompt `first` on.

        All questions on a picture are in one batch, so that the picture is decoded and encoded once. Where a picture
        has more than `batch_size` questions, they fill several batches.

        Args:
            batch_size: The number of prompts in a batch at most.
            first: The number of the first prompt; those before it are left out.
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
        """Return the last place up to `stop` that does not cut the prompts of a picture apart.

        `stop` itself is returned where all prompts from `start` on are on the same picture.
        """
        end = stop
        while end > start and self._prompts[end].shown is not None:
            if self._prompts[end - 1].shown != self._prompts[end].shown:
                break
            end -= 1
        return stop if end == start else end

    # ---------------------------------------------------------------------------------------------------- controls

    def shuffled(self) -> Prompts:
        """Return the same texts, each beside the pictures of another record."""
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
        """Return the same texts, each beside a gray picture of the size of its own."""

        def read_gray(index: int) -> list[ImageFile]:
            pictures = self._read_pictures(index)
            return [_gray_file(*open_image(picture).size) for picture in pictures]

        return Prompts(self._prompts, read_gray)

    def without_pictures(self) -> Prompts:
        """Return the same texts beside no picture."""
        changed = [Prompt(prompt.record, None, 0) for prompt in self]
        return Prompts(changed, self._read_pictures)


CONTROLS = {"shuffled_images": Prompts.shuffled, "blank_images": Prompts.blank}
"""The controls of captions by name: they show how much of a caption comes from the picture."""


# Pictures of a data set have few different sizes.
@lru_cache(maxsize=64)
def _gray_file(width: int, height: int) -> bytes:
    """Return the PNG file of a gray picture."""
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG", compress_level=1)
    return file.getvalue()


def prompts_of_records(records: Sequence[Mapping]) -> Prompts:
    """Return the prompts of records that are in memory, one of each record."""
    prompts = [_prompt(record, number) for number, record in enumerate(records)]
    return Prompts(prompts, lambda number: images_of(records[number]))


def prompts_of_source(source: Source, name: str, num_records: int | None = None) -> Prompts:
    """Return the prompts of the records of a source; each question of a record makes a prompt.

    Args:
        source: The source of an evaluation.
        name: The name of the evaluation, for messages.
        num_records: The number of records that are taken, always the same ones. None takes all, since a score over
            fewer is not comparable.

    Raises:
        ConfigError: If a record cannot be read. A record whose picture is damaged raises it later, when the picture is
            read.
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
