"""The templates that have a name, and `find_template`, which turns a user's choice into a template."""

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
"""The templates by the names that `stage.template` takes."""

OF_TOKENIZER = "tokenizer"
"""The name that stands for the chat template of the language model's own tokenizer."""

_NEEDED_SLOTS = [
    ("human", "{human}"),
    ("first", "{human}"),
    ("with_system", "{system}"),
    ("with_system", "{human}"),
    ("response", "{response}"),
]
"""The attributes of a template, each with a slot that it must have."""


def find_template(chosen: str | Mapping[str, str], tokenizer: Any = None) -> Template:
    """Return the template that the key `template` chooses, by a name or by strings of the user's own.

    Args:
        chosen: A key of `TEMPLATES`; or "tokenizer", the chat template of the tokenizer; or a mapping from `Template`'s
            attributes to strings. The mapping needs `human`. Where it has no `with_system`, the system text and a line
            break are put before its `first`, or before `human` if that is missing too; any other attribute that is
            missing takes `Template`'s default.
        tokenizer: The tokenizer of the language model, which is read for the name "tokenizer" alone.

    Raises:
        ConfigError: If there is no template of that name, if the tokenizer's chat template cannot be used, if `human`
            is missing, or if an entry of the mapping has an unknown key, is no text, lacks a slot that it needs, has an
            unknown slot, or has `{images}` behind `{human}`.
    """
    if chosen == OF_TOKENIZER:
        # Imported here, since it imports transformers, and nothing else of this module asks a tokenizer.
        from visllama.text.chat_template import read_chat_template

        return read_chat_template(tokenizer)

    if isinstance(chosen, str):
        if chosen not in TEMPLATES:
            raise ConfigError(f"template={chosen}: choose {', '.join(TEMPLATES)}, {OF_TOKENIZER}, or give its strings")
        return TEMPLATES[chosen]

    # A mapping comes from a YAML file, or from the settings that are kept with weights.
    known = [field.name for field in fields(Template)]
    wrong = [name for name, value in chosen.items() if name not in known or not isinstance(value, str)]
    if "human" not in chosen:
        wrong.append("human")
    if wrong:
        raise ConfigError(f"template.{wrong[0]}: a template is the strings {', '.join(known)}")

    first = chosen.get("first") or chosen["human"]
    strings = {"with_system": "{system}\n" + first, **chosen}
    template = Template(**strings)
    _check_slots(template)
    return template


def _check_slots(template: Template) -> None:
    """Check that each string of a template has the slots that it must have, and no unknown ones.

    `{images}` has to stand before `{human}`.

    Raises:
        ConfigError: If a string breaks one of these rules; the message names the string.
    """
    for name, text in vars(template).items():
        unknown = [slot for slot in re.findall(r"\{\w+\}", text) if not SLOT.fullmatch(slot)]
        if unknown:
            raise ConfigError(f"template.{name}={text!r}: knows no {unknown[0]}")

        before_human, _, _ = text.partition("{human}")
        if "{images}" in text and "{images}" not in before_human:
            raise ConfigError(f"template.{name}={text!r}: has {{images}} behind {{human}}: they stand before it")

    for name, slot in _NEEDED_SLOTS:
        text = getattr(template, name)
        # An empty `first` stands for `human`.
        is_unused = name == "first" and not text
        if slot not in text and not is_unused:
            raise ConfigError(f"template.{name}={text!r}: has no {slot}")
