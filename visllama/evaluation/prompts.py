"""What is put before a model when it is judged: the texts at once, the pictures when their turn comes."""

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
    """One text that a model writes on after, and the pictures that are shown with it.

    Attributes:
        record: The record without its pictures; of questions it holds one.
        shown: The number of the record whose pictures are shown; None shows none.
        num_images: How many pictures that record has.
    """

    record: Mapping
    shown: int | None
    num_images: int


class Prompts:
    """The prompts of an evaluation, those of one picture behind each other.

    Args:
        prompts: The prompts.
        read_pictures: Returns the pictures of a record by its number. They are read when they are needed, and never
            all held: those of VQAv2 are 6 GB.
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
        """Return the pictures that are shown with a prompt, none, one or several."""
        return [] if prompt.shown is None else self._read_pictures(prompt.shown)

    def record(self, index: int) -> dict:
        """Return a prompt's record with the pictures that are shown with it."""
        prompt = self._prompts[index]
        return {**prompt.record, "images": self.pictures(prompt)}

    def records(self) -> list[dict]:
        """Return every prompt's record with the pictures that are shown with it, all of them in memory."""
        return [self.record(index) for index in range(len(self))]

    def batches(self, batch_size: int, first: int = 0) -> list[range]:
        """Return the numbers of the prompts of each batch, from prompt `first` on.

        All questions on a picture are in one batch, so that it is decoded and encoded once; those on a picture that has
        more than `batch_size` fill batches of their own.
        """
        batches: list[range] = []
        start = first
        while start < len(self):
            stop = min(start + batch_size, len(self))
            if stop < len(self):
                stop = self._end_of_picture(start, stop)
            batches.append(range(start, stop))
            start = stop
        return batches

    def _end_of_picture(self, start: int, stop: int) -> int:
        """Return where a batch from `start` ends, so that no picture's prompts are cut apart at `stop` if possible."""
        end = stop
        while end > start and self._prompts[end].shown is not None:
            if self._prompts[end - 1].shown != self._prompts[end].shown:
                break
            end -= 1
        return stop if end == start else end

    # ---------------------------------------------------------------------------------------------------- controls

    def shuffled(self) -> Prompts:
        """Return the same texts, each beside the pictures of another record."""
        own = list(dict.fromkeys(prompt.shown for prompt in self if prompt.shown is not None))
        num_images = {prompt.shown: prompt.num_images for prompt in self}
        cycle = permutation(len(own), 0).tolist()
        donors = {own[i]: own[j] for i, j in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
        changed = []
        for prompt in self:
            donor = donors.get(prompt.shown)
            changed.append(Prompt(prompt.record, donor, num_images.get(donor, 0)))
        return Prompts(changed, self._read_pictures)

    def blank(self) -> Prompts:
        """Return the same texts, each beside a gray picture of the size of its own."""

        def read_gray(index: int) -> list[ImageFile]:
            return [_gray_file(*open_image(picture).size) for picture in self._read_pictures(index)]

        return Prompts(self._prompts, read_gray)

    def without_pictures(self) -> Prompts:
        """Return the same texts beside no picture."""
        return Prompts([Prompt(prompt.record, None, 0) for prompt in self], self._read_pictures)


CONTROLS = {"shuffled_images": Prompts.shuffled, "blank_images": Prompts.blank}
"""What shows how much of a caption is seen, by name."""


@lru_cache(maxsize=64)
def _gray_file(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG", compress_level=1)
    return file.getvalue()


def prompts_of_records(records: Sequence[Mapping]) -> Prompts:
    """Return the prompts of records that are in memory, one each."""
    prompts = [_prompt(record, number) for number, record in enumerate(records)]
    return Prompts(prompts, lambda number: images_of(records[number]))


def prompts_of_source(source: Source, name: str, num_records: int | None = None) -> Prompts:
    """Return the prompts of the records of a source; of a record with several questions each makes a prompt.

    Args:
        source: The source of an evaluation.
        name: The name of the evaluation, for messages.
        num_records: How many of its records are taken, always the same ones; None takes all, since a score over fewer
            would not compare.

    Raises:
        ConfigError: If a record cannot be read. One whose picture is damaged raises it when the picture's turn comes.
    """

    def read(number: int) -> dict:
        try:
            return source.read(number)
        except BadRecord as error:
            raise ConfigError(f"evaluation.{name}.source: a record cannot be read: {error}") from error

    prompts = []
    for number in _chosen(len(source), num_records):
        prompt = _prompt(read(number), number)
        if "questions" in prompt.record:
            prompts += [prompt._replace(record=prompt.record | {"questions": [q]}) for q in prompt.record["questions"]]
        else:
            prompts.append(prompt)
    return Prompts(prompts, lambda number: images_of(read(number)))


def _chosen(num_there: int, num_wanted: int | None) -> Sequence[int]:
    if num_wanted is None or num_wanted >= num_there:
        return range(num_there)
    return sorted(permutation(num_there, 0)[:num_wanted].tolist())


def _prompt(record: Mapping, number: int) -> Prompt:
    num_images = len(images_of(record))
    text = {key: value for key, value in record.items() if key not in PICTURES}
    return Prompt(text, number if num_images else None, num_images)
