"""How the texts of a training are made; the settings are kept with its weights, and used wherever they are used."""

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
    """How the texts of a training are made.

    Attributes:
        prompt: The text before a caption; empty where there is none.
        max_text_tokens: The largest number of tokens of a prompt and its response; image spans are not counted.
        template: The template by which turns are written.
    """

    prompt: str
    max_text_tokens: int
    template: Template

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextSettings:
        """Return the settings that plain values describe.

        Raises:
            ConfigError: If a value is missing, unknown, of another type, or out of its range.
        """
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
