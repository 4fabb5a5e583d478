"""A Sample as a person reads it: token, segment, label; and which samples are shown."""

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
    """A token of a Sample; all placeholders of an image together are one token.

    Attributes:
        name: The token's text, as `token_names` returns it.
        id: The token's id in `input_ids`.
        segment: The part that it belongs to: "bos", "boi", "image", "eoi", "prompt", "response" or "end".
        label: The token's label in `labels`; None where nothing is learned.
    """

    name: str
    id: int
    segment: str
    label: int | None


class Shown(NamedTuple):
    """A Sample that is shown.

    Attributes:
        step: The number of the step that it is in, counted from 1.
        sample: The Sample.
        tokens: The Sample's tokens; empty where it could not be made.
    """

    step: int
    sample: Sample
    tokens: list[Token]

    @property
    def key(self) -> str:
        """The Sample's key, as it may be printed."""
        return readable(self.sample.key)

    @property
    def facts(self) -> str:
        """What the sample is made of, and why nothing is learned from it."""
        sample = self.sample
        parts = []
        # Nearly all that is shown is of the first step, which need not be said.
        if self.step > 1:
            parts.append(f"step {self.step}")

        if isinstance(sample, MeasuredSample):
            num_images = len(sample.pixel_values)
            plural = "" if num_images == 1 else "s"
            parts.append(f"{num_images or 'no'} image{plural}")
            parts.append(f"{len(sample.input_ids)} tokens, {sample.num_targets} supervised")
            if sample.is_cut:
                parts.append(f"cut: its text has {sample.num_text_tokens:,} tokens")

        if sample.fault:
            parts.append(f"masked: {readable(str(sample.fault))}")
        return ", ".join(parts)


def readable(text: str) -> str:
    """Return text with escapes for what cannot be seen or would steer the terminal: control characters, surrogates."""
    return "".join(_readable_sign(sign) for sign in text)


def _readable_sign(sign: str) -> str:
    if sign.isprintable():
        return sign
    return sign.encode("unicode_escape").decode()


def tokens_of(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Return the tokens of a Sample; none where it could not be made."""
    if not isinstance(sample, MeasuredSample):
        return []

    tokens: list[Token] = []
    num_placeholders = 0
    names = token_names(sample.input_ids, tokenizer)
    for place, (name, token_id, label) in enumerate(zip(names, sample.input_ids, sample.labels, strict=True)):
        is_end = token_id == sample.end_id
        if token_id in _MARKS:
            segment = _MARKS[token_id]
        elif label != IGNORE_INDEX:
            segment = "end" if is_end else "response"
        else:
            # Some tokenizers begin with the very token that ends: behind the start it ends an earlier turn.
            is_start = token_id == tokenizer.bos_token_id and (place == 0 or not is_end)
            segment = "bos" if is_start else "prompt"

        # The placeholders of an image stand in a row: from the second on they are counted on the first.
        if token_id == PLACEHOLDER_ID and sample.input_ids[place - 1] == PLACEHOLDER_ID:
            num_placeholders += 1
            tokens[-1] = tokens[-1]._replace(name=f"{readable(name)} x {num_placeholders}")
        else:
            num_placeholders = 1
            learned = None if label == IGNORE_INDEX else label
            tokens.append(Token(readable(name), token_id, segment, learned))
    return tokens


def folded(tokens: Sequence[Token], most: int) -> Iterator[Token | list[Token]]:
    """Yield tokens one by one. Where more than `most` in a row are of one segment, their middle half is one list."""
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
    """A Sample, and its place in the steps."""

    step: int
    place: int
    sample: Sample


def choose(steps: Sequence[SeenStep], num_shown: int, tokenizer: PreTrainedTokenizerBase) -> list[Shown]:
    """Choose samples to show: the first ones of every source in turn, so that each source is seen.

    Args:
        steps: The steps that were seen.
        num_shown: The number of samples; where there are more sources, one sample of each is shown.
        tokenizer: The tokenizer that names the tokens.
    """
    # Of the first step that has the source: one that is too rare for the first step of all is shown of a later one.
    by_source: dict[str, list[_Place]] = {}
    for number, step in enumerate(steps, start=1):
        for place, sample in enumerate(step.samples):
            of_source = by_source.setdefault(sample.source, [])
            if not of_source or of_source[0].step == number:
                of_source.append(_Place(number, place, sample))

    rounds = zip_longest(*by_source.values())
    in_turn = [chosen for chosen in chain.from_iterable(rounds) if chosen is not None]
    chosen_places = in_turn[: max(num_shown, len(by_source))]

    # Shown in the order of the run.
    chosen_places.sort(key=lambda chosen: (chosen.step, chosen.place))
    return [Shown(chosen.step, chosen.sample, tokens_of(chosen.sample, tokenizer)) for chosen in chosen_places]
