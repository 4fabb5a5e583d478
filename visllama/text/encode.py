"""Turn segments into ids: each is tokenised by itself, as the part of a text that it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from visllama.text.template import Segment

_ANCHOR = "\n"


class TextEncoder:
    """Tokenise segments, so that what is supervised never depends on how a tokenizer joins texts.

    Many tokenizers write a space before a text that has none (SentencePiece's dummy prefix). They do so here where a
    text starts, behind an image, and behind a special token if that is the tokenizer's way; where a segment goes on
    from another one it has the spaces that it says.

    Args:
        tokenizer: The tokenizer of the language model. If it has a `backend_tokenizer`, truncation and padding are
            switched off there.

    Attributes:
        special_ids: The id of each special token, by its text.
        starts_after_special: Whether the tokenizer writes a space before a text that starts behind a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # A tokenizer.json may ask for either, as for a batch: here neither is meant.
            self._backend.no_truncation()
            self._backend.no_padding()

        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_ids = {str(token): token_id for token_id, token in added.items() if token.special}
        self.special_ids[tokenizer.eos_token] = tokenizer.eos_token_id

        # One token may begin with another one: the longest is tried first.
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in longest_first)
        # The empty pattern would match everywhere; this one matches nowhere.
        self._special = re.compile(pattern or "(?!)")

        # A tokenizer with a prefix writes "a" otherwise at the start of a text than behind the anchor.
        self._anchor = self.start(_ANCHOR)
        behind_anchor = self.start(f"{_ANCHOR}a")[len(self._anchor) :]
        self._has_prefix = behind_anchor != self.start("a")
        self.starts_after_special = self._has_prefix and self._is_fresh_after_special()

    def _is_fresh_after_special(self) -> bool:
        """Return whether a text behind a special token has the ids that it has at the start of a text."""
        text = f"{self.tokenizer.eos_token}a"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[1:] == self.start("a")

    @property
    def needs_space_after_special(self) -> bool:
        """Whether a text that starts behind a special token needs its first space written out."""
        return self._has_prefix and not self.starts_after_special

    def start(self, text: str) -> list[int]:
        """Return the ids of a text; what looks like a special token in it is plain text."""
        if self._backend is None:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        # This does what `split_special_tokens` does, in a third of the time.
        self._backend.encode_special_tokens = True
        return self._backend.encode(text, add_special_tokens=False).ids

    def go_on(self, text: str) -> list[int]:
        """Return the ids of a text that stands behind another one."""
        if not self._has_prefix:
            return self.start(text)

        # The prefix goes before the anchor; what is behind the anchor has no more spaces than it says.
        ids = self.start(_ANCHOR + text)
        anchored = ids[: len(self._anchor)] == self._anchor
        return ids[len(self._anchor) :] if anchored else self.start(text)

    def end_token(self, named: str) -> str:
        """Return the token that ends a response: the template's, or eos where the tokenizer has no such token."""
        token = self._filled(named)
        return token if token in self.special_ids else self.tokenizer.eos_token

    def pieces(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield segments of the kinds "text", "image" and "special" (one token), none of them empty.

        Prompts are joined before they are tokenised, as a reader meets them; a response stands by itself.
        """
        pieces = (piece for segment in segments for piece in self._split(segment) if piece.text)
        for (kind, supervised), group in groupby(pieces, key=lambda piece: (piece.kind, piece.supervised)):
            if kind == "text":
                yield Segment("".join(piece.text for piece in group), supervised)
            else:
                yield from group

    def _split(self, segment: Segment) -> Iterator[Segment]:
        """Yield a segment with the slots for tokens filled; a template's words are cut at their special tokens."""
        if segment.kind == "end":
            yield Segment(self.end_token(segment.text), True, "special")
        elif segment.kind != "template":
            yield segment
        else:
            text = self._filled(segment.text)
            done = 0
            for match in self._special.finditer(text):
                yield Segment(text[done : match.start()])
                yield Segment(match.group(), False, "special")
                done = match.end()
            yield Segment(text[done:])

    def _filled(self, text: str) -> str:
        """Return a template's words with the tokenizer's own tokens in their slots."""
        text = text.replace("{bos}", self.tokenizer.bos_token or "")
        return text.replace("{eos}", self.tokenizer.eos_token)
