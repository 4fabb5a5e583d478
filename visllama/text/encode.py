"""Turn the segments of a sample (pieces of text, see `Segment`) into token ids, each tokenised by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from visllama.text.template import Segment

_ANCHOR = "\n"


class TextEncoder:
    """Tokenise the segments of a sample one by one, so that a response has the same ids whatever stands before it.

    Many tokenizers put a space before a text that has none (SentencePiece's dummy prefix, here called the prefix). A
    caller therefore says where a piece of text stands: at the start of the sample or behind an image (`start` gives it
    the prefix), or behind other text (`go_on` gives it none). Behind a special token, `start` is right if the
    attribute `starts_after_special` is True, else `go_on`.

    Args:
        tokenizer: The tokenizer of the language model; it must have an eos token. If it has a `backend_tokenizer`, that
            one is changed: truncation and padding are switched off, and `start` sets it to read special tokens as text.

    Attributes:
        special_ids: The id of each special token, by its text.
        starts_after_special: Whether the tokenizer itself puts the prefix before a text behind a special token, so that
            such a text belongs into `start`. It is False for a tokenizer without a prefix.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # A tokenizer.json may ask for either, as for a batch: here neither is meant.
            self._backend.no_truncation()
            self._backend.no_padding()

        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_ids: dict[str, int] = {}
        for token_id, token in added.items():
            if token.special:
                self.special_ids[str(token)] = token_id
        self.special_ids[tokenizer.eos_token] = tokenizer.eos_token_id

        # One token may begin with another one: the longest is tried first.
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in longest_first)
        # The empty pattern would match everywhere; this one matches nowhere.
        self._special = re.compile(pattern or "(?!)")

        # What a tokenizer does shows whether it has a prefix: with one it writes "a" otherwise at
        # the start of a text than behind the anchor.
        self._anchor = self.start(_ANCHOR)
        anchored = self.start(f"{_ANCHOR}a")
        behind_anchor = anchored[len(self._anchor) :]
        self._has_prefix = behind_anchor != self.start("a")
        self.starts_after_special = self._has_prefix and self._is_fresh_after_special()

    def _is_fresh_after_special(self) -> bool:
        """Return whether a text behind a special token has the ids that it has at the start of a text."""
        text = f"{self.tokenizer.eos_token}a"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[1:] == self.start("a")

    @property
    def needs_space_after_special(self) -> bool:
        """Whether a text behind a special token gets no prefix from the tokenizer, which elsewhere puts one.

        Such a text needs its first space written out (as " yes") to be read as a word of its own.
        """
        return self._has_prefix and not self.starts_after_special

    def start(self, text: str) -> list[int]:
        """Return the token ids of a text that starts a sample, or stands behind an image.

        The tokenizer puts its prefix (a space) before the text, if it has one. No BOS, EOS or other special token is
        added, and the spelling of a special token inside the text, as "</s>", becomes the ids of ordinary text.
        """
        if self._backend is None:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        # This does what `split_special_tokens` does, in a third of the time.
        self._backend.encode_special_tokens = True
        return self._backend.encode(text, add_special_tokens=False).ids

    def go_on(self, text: str) -> list[int]:
        """Return the token ids of a text that stands directly behind other text, so that it gets no prefix.

        As in `start`, no special token is added, and none is recognised inside the text. A text that the tokenizer
        merges with a line break before it gets the ids of `start`.
        """
        if not self._has_prefix:
            return self.start(text)

        # The prefix goes before the anchor; what is behind the anchor has no more spaces than it says.
        ids = self.start(_ANCHOR + text)
        num_anchor_ids = len(self._anchor)

        # The tokenizer may have merged the anchor with the text, which cannot be cut apart then.
        if ids[:num_anchor_ids] != self._anchor:
            return self.start(text)
        return ids[num_anchor_ids:]

    def end_token(self, named: str) -> str:
        """Return the text of the special token that ends a response.

        Args:
            named: The token that the template names (`Template.end`); "{eos}" in it stands for the tokenizer's eos.

        Returns:
            That token, or the tokenizer's eos where the tokenizer has no special token of that text.
        """
        token = self._filled(named)
        if token in self.special_ids:
            return token
        return self.tokenizer.eos_token

    def pieces(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield the pieces in which a sample is tokenised, in the order of the segments.

        The tokenizer's own tokens fill `{bos}` and `{eos}`, a "template" segment is cut at the special tokens in it,
        and neighbouring texts are joined, but never a supervised one (a response) with one that is not.

        Yields:
            Segments, none of them empty, of the kinds "text" (plain text, for `start` or `go_on`), "image" (one image),
            and "special" (one special token, a key of `special_ids`).
        """
        pieces = self._split_all(segments)
        for (kind, supervised), group in groupby(pieces, key=lambda piece: (piece.kind, piece.supervised)):
            if kind == "text":
                joined = "".join(piece.text for piece in group)
                yield Segment(joined, supervised)
            else:
                yield from group

    def _split_all(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield the pieces of all segments that are not empty."""
        for segment in segments:
            for piece in self._split(segment):
                if piece.text:
                    yield piece

    def _split(self, segment: Segment) -> Iterator[Segment]:
        """Yield the pieces of one segment, some of them empty; only "template" and "end" segments are changed."""
        if segment.kind == "end":
            yield Segment(self.end_token(segment.text), True, "special")
        elif segment.kind != "template":
            yield segment
        else:
            # Only in a template's own text is a special token meant: what fills its slots is plain text.
            text = self._filled(segment.text)
            done = 0
            for match in self._special.finditer(text):
                yield Segment(text[done : match.start()])
                yield Segment(match.group(), False, "special")
                done = match.end()
            yield Segment(text[done:])

    def _filled(self, text: str) -> str:
        """Return a template's text with the tokens in place of `{bos}` (empty if there is none) and `{eos}`."""
        text = text.replace("{bos}", self.tokenizer.bos_token or "")
        return text.replace("{eos}", self.tokenizer.eos_token)
