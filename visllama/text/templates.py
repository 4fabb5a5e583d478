"""The templates that have a name, and how one is found or read from strings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from visllama.errors import ConfigError
from visllama.text.template import SLOT, Template

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
    """Return a template by its name, or of strings of one's own.

    Args:
        chosen: A name, or a mapping of `Template`'s attributes.
        tokenizer: For `chosen="tokenizer"`.

    Raises:
        ConfigError: If there is none of that name, or the strings make none.
    """
    if chosen == OF_TOKENIZER:
        from visllama.text.chat_template import read_chat_template  # here: nothing else of this file asks a tokenizer

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
        strange = [slot for slot in re.findall(r"\{\w+\}", text) if not SLOT.fullmatch(slot)]
        if strange or ("{images}" in text and text.index("{images}") > (text + "{human}").index("{human}")):
            why = f"knows no {strange[0]}" if strange else "has {images} behind {human}: they stand before it"
            raise ConfigError(f"template.{name}={text!r}: {why}")
    for name, slot in _NEEDED_SLOTS:
        if slot not in getattr(made, name) and (made.first or name != "first"):
            raise ConfigError(f"template.{name}={getattr(made, name)!r}: has no {slot}")
    return made
