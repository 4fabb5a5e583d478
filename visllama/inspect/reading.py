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
    """A token of a Sample; the placeholders of an image are one.

    Attributes:
        name: As `token_names` has it.
        id: As `input_ids` have it.
        segment: "bos", "boi", "image", "eoi", "prompt", "response" or "end".
        label: As `labels` have it; None where nothing is learned.
    """

    name: str
    id: int
    segment: str
    label: int | None


class Shown(NamedTuple):
    """A Sample that is shown, its tokens, and the step that it is of, counted from 1."""

    step: int
    sample: Sample
    tokens: list[Token]

    @property
    def key(self) -> str:
        return readable(self.sample.key)

    @property
    def facts(self) -> str:
        """Return what the sample is made of, and why nothing is learned from it."""
        sample, told = self.sample, [f"step {self.step}"] if self.step > 1 else []
        if isinstance(sample, MeasuredSample):
            images = len(sample.pixel_values)
            told.append(f"{images or 'no'} image{'s' * (images != 1)}")
            told.append(f"{len(sample.input_ids)} tokens, {sample.num_targets} supervised")
            told += [f"cut: its text has {sample.num_text_tokens:,} tokens"] * sample.is_cut
        return ", ".join(told + ([f"masked: {readable(str(sample.fault))}"] if sample.fault else []))


def readable(text: str) -> str:
    """Write out what would not be seen, or would turn the terminal: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tokens_of(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Read a Sample; of one that could not be made, nothing."""
    if not isinstance(sample, MeasuredSample):
        return []
    tokens: list[Token] = []
    names = token_names(sample.input_ids, tokenizer)
    for place, (name, i, label) in enumerate(zip(names, sample.input_ids, sample.labels, strict=True)):
        is_end = i == sample.end_id
        if i in _MARKS:
            segment = _MARKS[i]
        elif label != IGNORE_INDEX:
            segment = "end" if is_end else "response"
        else:  # some tokenizers begin with the very token that ends
            segment = "bos" if i == tokenizer.bos_token_id and (place == 0 or not is_end) else "prompt"
        if i != PLACEHOLDER_ID or sample.input_ids[place - 1] != PLACEHOLDER_ID:
            tokens.append(Token(readable(name), i, segment, None if label == IGNORE_INDEX else label))
            count = 1
        else:
            count += 1
            tokens[-1] = tokens[-1]._replace(name=f"{readable(name)} x {count}")
    return tokens


def folded(tokens: Sequence[Token], most: int) -> Iterator[Token | list[Token]]:
    """Yield tokens; of more than `most` of one segment on end, the middle half of that as one list."""
    ends = most // 4
    for run in [list(run) for _, run in groupby(tokens, key=lambda token: token.segment)]:
        if len(run) <= most:
            yield from run
        else:
            yield from run[:ends]
            yield run[ends:-ends]
            yield from run[-ends:]


def choose(steps: Sequence[SeenStep], num_shown: int, tokenizer: PreTrainedTokenizerBase) -> list[Shown]:
    """Choose the first samples, of every source in turn, so that each is seen; one too rare for the first step later.

    Args:
        steps: What was seen.
        num_shown: How many; of more sources than that, one each.
        tokenizer: To read them.
    """
    found: dict[str, list[tuple[int, int, Sample]]] = {}
    for number, step in enumerate(steps, 1):
        for place, sample in enumerate(step.samples):
            of_source = found.setdefault(sample.source, [])
            if not of_source or of_source[0][0] == number:
                of_source.append((number, place, sample))
    turns = [one for one in chain.from_iterable(zip_longest(*found.values())) if one is not None]
    chosen = sorted(turns[: max(num_shown, len(found))], key=lambda one: one[:2])
    return [Shown(number, sample, tokens_of(sample, tokenizer)) for number, _, sample in chosen]
