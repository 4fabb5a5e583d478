"""The settings by which a training makes its texts, which are saved with the weights: judging makes the same texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from visllama.errors import ConfigError
from visllama.text.template import Template
from visllama.text.templates import find_template

_TYPES = {"prompt": str, "max_text_tokens": int, "template": dict}


@dataclass(frozen=True)
class TextSettings:
    """The settings by which a training makes its texts. Nothing is checked here; `from_dict` checks.

    Attributes:
        prompt: The text between an image and its caption; empty where there is none.
        max_text_tokens: The largest number of tokens of a prompt and its response together, 1 or more. The positions
            that an image takes up are not counted.
        template: The strings by which the turns of human and model are written as text.
    """

    prompt: str
    max_text_tokens: int
    template: Template

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a new dictionary of plain values; the template is a dictionary in it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextSettings:
        """Return the settings that a dictionary of plain values holds, as `to_dict` has written them.

        Args:
            values: `prompt` (a text), `max_text_tokens` (an int) and `template` (a dictionary of `Template`'s strings),
                and no other keys.

        Raises:
            ConfigError: If a key is missing or unknown, a value has another type, `max_text_tokens` is less than 1, or
                the strings make no template.
        """
        # These values come from a file that may be somebody else's. A subclass does not pass: a bool is an int too.
        types = {name: type(value) for name, value in values.items()}
        if types != _TYPES:
            names = [field.name for field in fields(cls)]
            raise ConfigError(f"text={values} must be {', '.join(names)}")

        num_tokens = values["max_text_tokens"]
        if num_tokens < 1:
            raise ConfigError(f"text.max_text_tokens={num_tokens}: must be 1 or more")

        try:
            template = find_template(values["template"])
        except ConfigError as error:
            raise ConfigError(f"text.{error}") from error
        return cls(values["prompt"], num_tokens, template)
