"""List the tokens of a Sample with their segments and labels, and choose the Samples that are shown.

A Sample is one training example: token ids with an image span (`[boi]`, K placeholders, `[eoi]`), a label for each
token, and the pixels of its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, zip_longest
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from visllama.data.samples import Sample
from visllama.inspect.seen import MeasuredSample, SeenStep
from visllama.text.tokens import BOI_ID, EOI_ID, IGNORE_INDEX, PLACEHOLDER_ID, token_names

_MARKS = {BOI_ID: "boi", PLACEHOLDER_ID: "image", EOI_ID: "eoi"}


class Token(NamedTuple):
    """A token of a Sample (one training example); all placeholders of an image together are one `Token`.

    Attributes:
        name: The token's text with escapes for signs that cannot be seen; of several placeholders also their number.
        id: The token's id in `Sample.input_ids`.
        segment: The part of the Sample that the token belongs to: "bos", "boi", "image", "eoi", "prompt", "response" or
            "end" (the end token that the model learns to write).
        label: The token's label in `Sample.labels`; None where nothing is learned.
    """

    name: str
    id: int
    segment: str
    label: int | None


class Shown(NamedTuple):
    """A Sample (one training example) that is shown on the terminal and on the page `inspect.html`.

    Attributes:
        step: The number of the training step that the Sample is in, counted from 1.
        sample: The Sample.
        tokens: The Sample's tokens; empty where its record could not be read, so that it has none.
    """

    step: int
    sample: Sample
    tokens: list[Token]

    @property
    def key(self) -> str:
        """The key of the Sample's record, with escapes for signs that cannot be seen."""
        return readable(self.sample.key)

    @property
    def facts(self) -> str:
        """A line of text: numbers of images and tokens, whether the text was cut, and the reason if nothing is learned.

        From step 2 on, the line begins with the step's number. A record that could not be read has no numbers.
        """
        sample = self.sample
        parts = []
        # Nearly all that is shown is of the first step, which need not be said.
        if self.step > 1:
            parts.append(f"step {self.step}")

        if isinstance(sample, MeasuredSample):
            num_images = len(sample.pixel_values)
            plural = "" if num_images == 1 else "s"
            parts.append(f"{num_images or 'no'} image{plural}")
            num_tokens = len(sample.input_ids)
            parts.append(f"{num_tokens} tokens, {sample.num_targets} supervised")
            if sample.is_cut:
                parts.append(f"cut: its text has {sample.num_text_tokens:,} tokens")

        # A record that cannot be used stays in the step as a Sample without anything to learn.
        if sample.fault:
            reason = readable(str(sample.fault))
            parts.append(f"masked: {reason}")
        return ", ".join(parts)


def readable(text: str) -> str:
    """Return text that is safe to print on one line: signs that cannot be printed become escapes.

    These are control characters, line breaks and surrogates, for example: a line break becomes the two signs `\\n`.
    """
    return "".join(_readable_sign(sign) for sign in text)


def _readable_sign(sign: str) -> str:
    if sign.isprintable():
        return sign
    return sign.encode("unicode_escape").decode()


def tokens_of(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Return the tokens of a Sample, each with its segment and its label.

    Args:
        sample: The Sample. One that is no `MeasuredSample` stands for a record that could not be read: its list is
            empty.
        tokenizer: The tokenizer that made the Sample's ids.
    """
    if not isinstance(sample, MeasuredSample):
        return []

    ids = sample.input_ids
    names = [readable(name) for name in token_names(ids, tokenizer)]
    rows = zip(names, ids, sample.labels, strict=True)

    tokens: list[Token] = []
    num_placeholders = 0
    for place, (name, token_id, label) in enumerate(rows):
        # The placeholders of an image stand in a row: from the second on they are counted on the first.
        if token_id == PLACEHOLDER_ID and ids[place - 1] == PLACEHOLDER_ID:
            num_placeholders += 1
            tokens[-1] = tokens[-1]._replace(name=f"{name} x {num_placeholders}")
            continue

        num_placeholders = 1
        is_learned = label != IGNORE_INDEX
        is_end = token_id == sample.end_id
        # Some tokenizers begin with the very token that ends: behind the start it ends an earlier turn.
        is_start = token_id == tokenizer.bos_token_id and (place == 0 or not is_end)
        if token_id in _MARKS:
            segment = _MARKS[token_id]
        elif is_learned:
            segment = "end" if is_end else "response"
        else:
            segment = "bos" if is_start else "prompt"
        tokens.append(Token(name, token_id, segment, label if is_learned else None))
    return tokens


def folded(tokens: Sequence[Token], most: int) -> Iterator[Token | list[Token]]:
    """Yield the tokens in their order, the middle of a long segment as one list.

    A segment is a run of neighbouring tokens with the same `segment`.

    Args:
        tokens: The tokens.
        most: The largest number of tokens of a segment that are all yielded one by one; at least 4. Of a longer
            segment, `most // 4` tokens at each end are yielded one by one, and all between them as one list.
    """
    num_at_ends = most // 4

    for _, group in groupby(tokens, key=lambda token: token.segment):
        row = list(group)
        if len(row) <= most:
            yield from row
        else:
            yield from row[:num_at_ends]
            yield row[num_at_ends:-num_at_ends]
            yield from row[-num_at_ends:]


class _Place(NamedTuple):
    """A Sample, the number of its step from 1, and its index in the step."""

    step: int
    place: int
    sample: Sample


def choose(steps: Sequence[SeenStep], num_shown: int, tokenizer: PreTrainedTokenizerBase) -> list[Shown]:
    """Choose the Samples that are shown: the first ones of each source in turn, so that each source is seen.

    Of each source, only Samples of one step are taken: the first step that has Samples of the source.

    Args:
        steps: The training steps, as `see` returns them.
        num_shown: The largest number of Samples; where there are more sources than that, one Sample of each is shown.
        tokenizer: The tokenizer that made the Samples' ids.

    Returns:
        The Samples in the order of the run.
    """
    # Of the first step that has the source: one that is too rare for the first step of all is shown of a later one.
    by_source: dict[str, list[_Place]] = {}
    for number, step in enumerate(steps, start=1):
        for place, sample in enumerate(step.samples):
            of_source = by_source.setdefault(sample.source, [])
            if not of_source or of_source[0].step == number:
                of_source.append(_Place(number, place, sample))

    rounds = zip_longest(*by_source.values())
    places_in_turn = [each_place for each_place in chain.from_iterable(rounds) if each_place is not None]
    chosen_places = places_in_turn[: max(num_shown, len(by_source))]

    # Shown in the order of the run.
    chosen_places.sort(key=lambda chosen_place: (chosen_place.step, chosen_place.place))
    shown_samples = []
    for chosen_place in chosen_places:
        tokens = tokens_of(chosen_place.sample, tokenizer)
        shown_samples.append(Shown(chosen_place.step, chosen_place.sample, tokens))
    return shown_samples
