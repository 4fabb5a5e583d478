"""A conversation with a trained model: each turn reads only what is new, since the rest is in the model's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor
from transformers import Cache

from visllama.data.samples import Sample
from visllama.evaluation.captioner import decode_text
from visllama.inference.streaming import stream_text
from visllama.inference.writer import Picture, Writer
from visllama.text.template import Turn
from visllama.text.tokens import BOI_ID


class _Question(NamedTuple):
    """A turn that waits for its answer.

    Attributes:
        turn: The turn of the human.
        pixels: All images of the conversation, including those of this turn.
        input_ids: The ids of the conversation up to where the answer begins.
        sample: The part of the conversation that the language model has not read yet.
        cache: The cache of what the language model has read; None if all is read anew.
    """

    turn: Turn
    pixels: list[Tensor]
    input_ids: list[int]
    sample: Sample
    cache: Cache | None


class Chat:
    """A conversation with a trained model about any number of images; `Pipeline.chat` begins one.

    Args:
        writer: The model that answers.
        images: A picture (a path or a PIL image) or a list of pictures to show before the text of the first turn; None
            shows none.
        system: The system text before all turns; None takes the template's own, and "" none at all.

    Attributes:
        writer: The model that answers.
        maker: The `SampleMaker` that turns texts and pictures into the model's inputs.
        turns: The turns so far: one of "system" if `system` is not None, then "human" and "gpt" (the model) in turn.
        input_ids: The token ids of the conversation so far, as in training, with placeholder ids for the images; empty
            before the first answer.

    Raises:
        ConfigError: If a picture cannot be read.
    """

    def __init__(
        self,
        writer: Writer,
        images: Picture | Sequence[Picture] | None = None,
        system: str | None = None,
    ) -> None:
        self.writer = writer
        self.maker = writer.maker
        self.turns = [] if system is None else [Turn("system", system)]
        self.input_ids: list[int] = []
        self._pixels: list[Tensor] = []
        self._waiting = writer.read(images)
        self._cache = writer.model.new_cache()

    def say(self, text: str, images: Picture | Sequence[Picture] | None = None, **decoding) -> str:
        """Add a turn of the human, and return the model's answer; after an error the conversation is as it was before.

        Args:
            text: The text of the turn.
            images: A picture (a path or a PIL image) or a list of pictures to show before the text; None shows none.
            decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

        Raises:
            ConfigError: If a picture cannot be read, or the conversation does not fit the language model's positions.
        """
        question = self._ask(text, images, decoding)
        (written,) = self.writer.write([question.sample], decoding, question.cache)
        return self._conclude(question, written)

    def stream(self, text: str, images: Picture | Sequence[Picture] | None = None, **decoding) -> Iterator[str]:
        """Add a turn of the human, and yield the model's answer so far each time that it has grown by a word or so.

        The last text is the whole answer; once it is yielded, the conversation holds the turn and the answer. After an
        error, or if the iterator is closed early, the conversation is as it was before. With `num_beams` above 1 the
        whole answer is the only text, because the best beam is known only at the end.

        Args:
            text: The text of the turn.
            images: A picture (a path or a PIL image) or a list of pictures to show before the text; None shows none.
            decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

        Raises:
            ConfigError: If a picture cannot be read, or the conversation does not fit the language model's positions.
                It is raised by the first step of the iteration, not by the call.
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
        """Free the memory of what the language model keeps of earlier turns; the next turn reads all of them again."""
        self._cache = self.writer.model.new_cache()

    def _ask(self, text: str, images: Picture | Sequence[Picture] | None, decoding: Mapping) -> _Question:
        """Return the turn as the model is to read it, and take the cache out until the turn is answered."""
        pictures = self._waiting + self.writer.read(images)
        turn = Turn("human", text, len(pictures))
        pixels = self._pixels + [self.maker.transform(picture) for picture in pictures]
        ids = self.input_ids + self._opening(turn)

        # The cache is taken out until the turn is done: if anything fails, the empty one in its place is never wrong.
        cache = self._cache
        self._cache = self.writer.model.new_cache()

        # Beams are rows, and the cache holds one row: with beams the whole conversation is read anew.
        if _has_beams(decoding):
            sample = Sample("", ids, [], pixels)
            return _Question(turn, pixels, ids, sample, None)

        new_ids = ids[cache.get_seq_length() :]
        num_new_images = new_ids.count(BOI_ID)
        new_pixels = pixels[len(pixels) - num_new_images :]
        sample = Sample("", new_ids, [], new_pixels)
        return _Question(turn, pixels, ids, sample, cache)

    def _conclude(self, question: _Question, written: list[int]) -> str:
        """Add the turn and its answer to the conversation, and return the answer."""
        answer_ids = list(takewhile(lambda token: token not in self.writer.end_ids, written))
        answer = decode_text(self.maker.tokenizer, answer_ids).strip()

        # A response ends with the template's end token, as in training, also if another token or the length ended it.
        self.input_ids = [*question.input_ids, *answer_ids, self.maker.end_id]
        self._pixels = question.pixels
        self._waiting = []
        self.turns += [question.turn, Turn("gpt", answer)]

        # A longer cache would hold tokens from behind the end of the answer.
        num_kept = len(question.input_ids) + len(answer_ids)
        if question.cache is not None and question.cache.get_seq_length() <= num_kept:
            self._cache = question.cache
        return answer

    def _opening(self, turn: Turn) -> list[int]:
        """Return the ids of a human's turn, up to where the response begins."""
        segments = self.maker.template.segments([*self.turns, turn])
        ends = [place for place, segment in enumerate(segments) if segment.kind == "end"]
        if not ends:
            ids, _ = self.maker.tokenise(segments)
            return ids

        # The earlier turns have their ids already, as they were generated; tokenising their texts may give other ids.
        # The last end is tokenised too and cut off again, since a text's tokens depend on what it stands behind.
        ids, _ = self.maker.tokenise(segments[ends[-1] :])
        num_cut = 1 if self.maker.tokenizer.bos_token_id is None else 2
        return ids[num_cut:]


def _has_beams(decoding: Mapping) -> bool:
    num_beams = decoding.get("num_beams") or 1
    return num_beams > 1
