"""Templates as data, and what they make of a record: segments of text, each supervised (a response) or not.

A template is a handful of strings with slots. In its own words the tokenizer's special tokens are meant as such; in the
texts that fill the slots they, and what looks like a marker or another template, are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from visllama.errors import ConfigError

IMAGE_MARK = "<image>"
"""Where an image stands in a turn of a conversation."""
_OPENING_MARKS = re.compile(rf"(?:{re.escape(IMAGE_MARK)}\s*)*")
_SLOT = re.compile(r"(\{(?:system|images|human|response|bos|eos)\})")


class Segment(NamedTuple):
    """A piece of a sample.

    Attributes:
        text: What is read, or learned where it is supervised.
        supervised: A response, or the end of one.
        kind: "text" is plain, in "template" special tokens are meant, an "image" stands for its span, and "end" for the
            template's end token.
    """

    text: str
    supervised: bool = False
    kind: str = "text"


_IMAGE = Segment(IMAGE_MARK, kind="image")


class Turn(NamedTuple):
    """What one side says.

    Attributes:
        speaker: "system", "human" or "gpt".
        text: Its words; `IMAGE_MARK` stands for an image in it where `has_marks`.
        num_images: Images that stand before it.
    """

    speaker: str
    text: str
    num_images: int = 0
    has_marks: bool = False


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        human: What a human says, up to where the response begins. Slots: `{human}`, and `{images}` for the images that
            stand before the text (directly before `{human}` where it has no such slot).
        with_system: The same for the first turn, where there is a `{system}` text.
        first: The same for the first turn where there is none; empty is as `human`.
        response: Slot `{response}`; an empty response is its end token alone.
        end: The token that ends a response; `{eos}`, or the tokenizer's eos where it knows no such token.
        image: What follows an image that stands before a text.
        system: The system text of a record that brings none.
    """

    human: str
    with_system: str
    first: str = ""
    response: str = " {response}"
    end: str = "{eos}"
    image: str = ""
    system: str = ""

    def segments(self, turns: Sequence[Turn], answered: bool = True) -> list[Segment]:
        """Write turns: system at most once and first, then human and gpt by turns.

        A response that no prompt's words stand before (behind its image alone, as a caption does) is written as it is.
        Unless `answered`, the last response is left out: it is to be generated.
        """
        system = next((turn.text for turn in turns if turn.speaker == "system"), self.system)
        spoken = [turn for turn in turns if turn.speaker != "system"]
        made: list[Segment] = []
        for number, turn in enumerate(spoken):
            if turn.speaker == "gpt":
                made += [_IMAGE] * turn.num_images
                made += self._response(turn.text, _ends_with_words(made))
            else:
                opening = self.with_system if system else self.first or self.human
                made += self._filled(opening if number == 0 else self.human, turn, system)
        while not answered and made and made[-1].supervised:
            made.pop()
        return made

    def _response(self, text: str, prompted: bool) -> list[Segment]:
        written = self.response.replace("{response}", text) if prompted and text else text
        return [Segment(written, True), Segment(self.end, True, "end")]

    def _filled(self, form: str, turn: Turn, system: str) -> Iterator[Segment]:
        images = [_IMAGE, Segment(self.image, kind="template")] * turn.num_images
        for piece in _SLOT.split(form):
            if piece == "{images}":
                yield from images
            elif piece == "{human}":
                yield from [] if "{images}" in form else images
                yield from _around_images(turn)
            elif piece == "{system}":
                yield Segment(system)
            else:
                yield Segment(piece, kind="template")


def _ends_with_words(segments: list[Segment]) -> bool:
    return next((segment.kind in ("text", "template") for segment in reversed(segments) if segment.text), False)


def _around_images(turn: Turn) -> Iterator[Segment]:
    for number, text in enumerate(turn.text.split(IMAGE_MARK) if turn.has_marks else [turn.text]):
        yield from [_IMAGE] if number else []
        yield Segment(text)


_ALPACA = "### Instruction:\n{human}\n\n### Response:\n"
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{human}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
TEMPLATES = {
    "plain": Template(human="{images}{human}", with_system="{images}{system}\n{human}"),
    "question_answer": Template(
        human="{images}question: {human} answer:", with_system="{images}{system}\nquestion: {human} answer:"
    ),
    # Visual-LLaMA's, whose [quest] and [ans] are tokens of their own, never trained. Here they are text.
    "original": Template(human="{images}[quest] {human} [ans]", with_system="{images}{system}\n[quest] {human} [ans]"),
    "alpaca": Template(
        human=f"\n\n{_ALPACA}",
        first=_ALPACA,
        with_system=f"{{system}}\n\n{_ALPACA}",
        response="{response}",
        image="\n",
        system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    ),
    "vicuna": Template(
        human="USER: {human} ASSISTANT:",
        with_system="{system} USER: {human} ASSISTANT:",
        image="\n",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    "llama2_chat": Template(
        human="{bos}[INST] {human} [/INST]",
        first="[INST] {human} [/INST]",
        with_system="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{human} [/INST]",
        response=" {response} ",
        image="\n",
    ),
    "llama3_chat": Template(
        human=_LLAMA3,
        with_system=f"<|start_header_id|>system<|end_header_id|>\n\n{{system}}<|eot_id|>{_LLAMA3}",
        response="{response}",
        end="<|eot_id|>",
        image="\n",
    ),
}
"""By the names that `stage.template` takes; "tokenizer" is the language model's own chat template."""
OF_TOKENIZER = "tokenizer"
_NEEDED_SLOTS = [
    ("human", "{human}"),
    ("first", "{human}"),
    ("with_system", "{system}"),
    ("with_system", "{human}"),
    ("response", "{response}"),
]


def find_template(chosen: str | Mapping[str, str], tokenizer: Any = None) -> Template:
    """Give a template by its name, or of strings of one's own.

    Args:
        chosen: A name, or a mapping of `Template`'s attributes.
        tokenizer: For `chosen="tokenizer"`.

    Raises:
        ConfigError: If there is none of that name, or the strings make none.
    """
    if chosen == OF_TOKENIZER:
        from visllama.chat_template import read_chat_template  # here: nothing else of this file asks a tokenizer

        return read_chat_template(tokenizer)
    if isinstance(chosen, str):
        if chosen not in TEMPLATES:
            raise ConfigError(f"template={chosen}: choose {', '.join(TEMPLATES)}, {OF_TOKENIZER}, or give its strings")
        return TEMPLATES[chosen]
    known = [field.name for field in fields(Template)]
    wrong = [name for name, value in chosen.items() if name not in known or not isinstance(value, str)]
    if wrong or "human" not in chosen:
        raise ConfigError(f"template.{wrong[0] if wrong else 'human'}: a template is the strings {', '.join(known)}")
    first = chosen.get("first") or chosen["human"]
    made = Template(**{"with_system": "{system}\n" + first, **chosen})
    for name, text in vars(made).items():
        strange = [slot for slot in re.findall(r"\{\w+\}", text) if not _SLOT.fullmatch(slot)]
        if strange or ("{images}" in text and text.index("{images}") > (text + "{human}").index("{human}")):
            why = f"knows no {strange[0]}" if strange else "has {images} behind {human}: they stand before it"
            raise ConfigError(f"template.{name}={text!r}: {why}")
    for name, slot in _NEEDED_SLOTS:
        if slot not in getattr(made, name) and (made.first or name != "first"):
            raise ConfigError(f"template.{name}={getattr(made, name)!r}: has no {slot}")
    return made


def turns_of(record: Mapping, item: int, prompt: str, hint: str, num_images: int) -> list[Turn]:
    """Give the turns of one thing to learn in a record.

    Args:
        record: With `captions`, `questions` or `conversations`; one with none of them is to be captioned.
        item: Which caption or question.
        prompt: What a human says to have a caption; empty: nothing, the caption follows its image.
        hint: What stands in a line behind a question.
        num_images: Images of the record.
    """
    if "conversations" in record:
        return [_turn(said["from"], said["value"]) for said in record["conversations"]]
    if "questions" in record:
        asked = record["questions"][item]
        question = f"{asked['question']}\n{hint}" if hint else asked["question"]
        return [Turn("human", question, num_images), Turn("gpt", answer_of(asked))]
    caption = record["captions"][item] if "captions" in record else ""
    if not prompt:
        return [Turn("gpt", caption, num_images)]
    return [Turn("human", prompt, num_images), Turn("gpt", caption)]


def _turn(speaker: str, text: str) -> Turn:
    """Give a turn of a conversation; images that open it stand where the template has them, others where they are."""
    if speaker != "human":
        return Turn(speaker, text)
    marks = _OPENING_MARKS.match(text).group()
    if marks == text:
        return Turn(speaker, text, has_marks=True)
    return Turn(speaker, text[len(marks) :], marks.count(IMAGE_MARK), has_marks=True)


def num_items(record: Mapping) -> int:
    """Return the number of items in a record: its captions or questions; a conversation is one item."""
    kind = next((kind for kind in ("captions", "questions") if kind in record), None)
    return len(record[kind]) if kind else 1


def answer_of(asked: Mapping) -> str:
    """Give the answer that most gave to a question, of equals the first."""
    return max(asked["answers"], key=asked["answers"].count)
