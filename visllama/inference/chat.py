"""A conversation with a trained model: a turn reads what is new, all before it lies in the language model's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor
from transformers import Cache

from visllama.data.samples import Sample
from visllama.inference.streaming import stream_text
from visllama.inference.writer import Picture, Writer
from visllama.text.template import Turn
from visllama.text.tokens import BOI_ID


class _Question(NamedTuple):
    """A turn that waits for its answer.

    Attributes:
        turn: The turn of the human.
        pixels: All images of the conversation, those of this turn included.
        input_ids: The conversation up to where the answer begins.
        sample: The part of it that the language model has not read yet.
        cache: What it has read; None where all is read anew.
    """

    turn: Turn
    pixels: list[Tensor]
    input_ids: list[int]
    sample: Sample
    cache: Cache | None


class Chat:
    """A conversation about any number of images; `Pipeline.chat` begins one.

    Args:
        writer: The model that answers, with what it reads by.
        images: They stand before the first turn's text.
        system: What the model is told before all; None is what its template says, "" is nothing.

    Attributes:
        turns: What was said so far.
        input_ids: The same as the language model reads it: token by token as it was trained on, image spans included.
    """

    def __init__(
        self, writer: Writer, images: Picture | Sequence[Picture] | None = None, system: str | None = None
    ) -> None:
        self.writer = writer
        self.maker = writer.maker
        self.turns = [] if system is None else [Turn("system", system)]
        self.input_ids: list[int] = []
        self._pixels: list[Tensor] = []
        self._waiting = writer.read(images)
        self._cache = writer.model.new_cache()

    def say(self, text: str, images: Picture | Sequence[Picture] | None = None, **decoding) -> str:
        """Add a turn and return the answer to it; after an error the conversation is as before.

        Args:
            text: Of this turn.
            images: They stand before it.
            decoding: As transformers' `generate` takes it; greedy and at most 40 tokens unless told otherwise.

        Raises:
            ConfigError: If a picture cannot be read, or the conversation does not fit the language model's positions.
        """
        question = self._ask(text, images, decoding)
        (written,) = self.writer.write([question.sample], decoding, question.cache)
        return self._conclude(question, written)

    def stream(self, text: str, images: Picture | Sequence[Picture] | None = None, **decoding) -> Iterator[str]:
        """Add a turn and yield the answer to it as it grows, word by word; the last text is the whole answer.

        When that is yielded the conversation is as `say` leaves it. After an error, and where the iterator is closed
        before, it is as before. With beams the whole answer is the only text: which beam is best is known at the end.

        Args:
            text: Of this turn.
            images: They stand before it.
            decoding: As `say` takes it.

        Raises:
            ConfigError: As `say` does, when the first text is asked for.
        """
        question = self._ask(text, images, decoding)

        def write(settings: Mapping) -> list[int]:
            (ids,) = self.writer.write([question.sample], settings, question.cache)
            return ids

        if _has_beams(decoding):
            written = write(decoding)
        else:
            written = yield from stream_text(write, self.maker.tokenizer, decoding)
        yield self._conclude(question, written)

    def free_cache(self) -> None:
        """Free the memory of what was read; the next turn reads it again."""
        self._cache = self.writer.model.new_cache()

    def _ask(self, text: str, images: Picture | Sequence[Picture] | None, decoding: Mapping) -> _Question:
        """Return the turn as it is to be read, and take the cache out until it is answered."""
        pictures = self._waiting + self.writer.read(images)
        turn = Turn("human", text, len(pictures))
        pixels = self._pixels + [self.maker.transform(picture) for picture in pictures]
        ids = self.input_ids + self._opening(turn)

        # Taken out until the turn is done: whatever fails, an empty one is never wrong. Beams are rows, and this holds
        # one: with them all is read anew.
        cache, self._cache = self._cache, self.writer.model.new_cache()
        new = ids
        if _has_beams(decoding):
            cache = None
        else:
            new = ids[cache.get_seq_length() :]
        sample = Sample("", new, [], pixels[len(pixels) - new.count(BOI_ID) :])
        return _Question(turn, pixels, ids, sample, cache)

    def _conclude(self, question: _Question, written: list[int]) -> str:
        """Add the turn and its answer to the conversation, and return the answer."""
        kept = list(takewhile(lambda i: i not in self.writer.end_ids, written))
        answer = self.maker.tokenizer.decode(kept, skip_special_tokens=True).strip()

        # As in training a response has its end, whatever it was that ended it.
        self.input_ids = [*question.input_ids, *kept, self.maker.end_id]
        self._pixels, self._waiting = question.pixels, []
        self.turns += [question.turn, Turn("gpt", answer)]
        # A longer one holds what stood behind the end.
        if question.cache is not None and question.cache.get_seq_length() <= len(question.input_ids) + len(kept):
            self._cache = question.cache
        return answer

    def _opening(self, turn: Turn) -> list[int]:
        """Return the ids of a human's turn, up to where the response begins."""
        segments = self.maker.template.segments([*self.turns, turn])
        ends = [place for place, segment in enumerate(segments) if segment.kind == "end"]
        if not ends:
            return self.maker.tokenise(segments)[0]
        # All before is there as it was generated, which its text may not give back. The end goes along, since how a
        # text is tokenised depends on what it stands behind.
        behind = self.maker.tokenise(segments[ends[-1] :])[0]
        return behind[1 + (self.maker.tokenizer.bos_token_id is not None) :]


def _has_beams(decoding: Mapping) -> bool:
    return (decoding.get("num_beams") or 1) > 1
