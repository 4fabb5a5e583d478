"""A conversation with a trained model: a turn reads what is new, all before it lies in the language model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from torch import Tensor

from visllama.data.samples import Sample
from visllama.inference.writer import Picture, Writer
from visllama.text.template import Turn
from visllama.text.tokens import BOI_ID


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
        pictures = self._waiting + self.writer.read(images)
        turn = Turn("human", text, len(pictures))
        pixels = self._pixels + [self.maker.transform(picture) for picture in pictures]
        ids = self.input_ids + self._opening(turn)
        # Taken out until the turn is done: whatever fails, an empty one is never wrong. Beams are rows, and this holds
        # one: with them all is read anew.
        cache, self._cache = self._cache, self.writer.model.new_cache()
        has_beams = (decoding.get("num_beams") or 1) > 1
        new = ids if has_beams else ids[cache.get_seq_length() :]
        sample = Sample("", new, [], pixels[len(pixels) - new.count(BOI_ID) :])
        (written,) = self.writer.write([sample], decoding, None if has_beams else cache)
        kept = list(takewhile(lambda i: i not in self.writer.end_ids, written))
        answer = self.maker.tokenizer.decode(kept, skip_special_tokens=True).strip()
        # As in training a response has its end, whatever it was that ended it.
        self.input_ids, self._pixels, self._waiting = [*ids, *kept, self.maker.end_id], pixels, []
        self.turns += [turn, Turn("gpt", answer)]
        if cache.get_seq_length() <= len(ids) + len(kept):  # else it holds what stood behind the end
            self._cache = cache
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
