"""A run's template as a Jinja chat template, which other libraries render: the same text, image marks included."""

from __future__ import annotations

from typing import NamedTuple

from visllama.text.encode import TextEncoder
from visllama.text.template import SLOT, Template


class ImageMark(NamedTuple):
    """The text that stands for an image in a rendered prompt.

    Attributes:
        boi: The token before an image.
        image: The token that the image's vectors replace.
        eoi: The token behind an image.
    """

    boi: str
    image: str
    eoi: str

    def __str__(self) -> str:
        return self.boi + self.image + self.eoi


def write_jinja(template: Template, prompt: str, encoder: TextEncoder, mark: ImageMark | None) -> str:
    """Return a chat template that renders what the run's template writes.

    It takes messages as transformers and vLLM do: `content` is a text, or a list of parts of type "image" and "text".
    Images that open a message stand where the template has its images, others where they are. A first message of
    images alone asks for a caption. BOS is part of the text.

    Args:
        template: The run's template.
        prompt: The text by which the run asked for a caption; "" where a caption follows its image.
        encoder: The encoder of the language model's tokenizer.
        mark: The text that stands for an image; None where images are vectors that the caller puts in.
    """
    bos = encoder.tokenizer.bos_token or ""
    lines = [
        f"{{%- set image = {_quoted(str(mark or ''))} -%}}",
        f"{{%- set state = namespace(text={_quoted(bos)}, system={_quoted(template.system)}, "
        "is_first=true, is_prompted=false) -%}",
        *_READ_MESSAGE,
        '{%- if message.role == "system" -%}',
        "{%- set state.system = said.text -%}",
        '{%- elif message.role == "user" -%}',
        *_human(template, prompt, encoder),
        "{%- else -%}",
        *_response(template, encoder.end_token(template.end)),
        "{%- endif -%}",
        "{%- endfor -%}",
        *_spaces(template, encoder, bos, mark),
        "{{- state.text -}}",
    ]
    return "\n".join(lines)


_READ_MESSAGE = (
    "{%- for message in messages -%}",
    '{%- set said = namespace(text="", num_images=0) -%}',
    "{%- if message.content is string -%}",
    "{%- set said.text = message.content -%}",
    "{%- else -%}",
    "{%- for part in message.content -%}",
    '{%- if part.type == "text" -%}',
    "{%- set said.text = said.text ~ part.text -%}",
    '{%- elif part.type == "image" and said.text == "" -%}',
    "{%- set said.num_images = said.num_images + 1 -%}",
    '{%- elif part.type == "image" -%}',
    "{%- set said.text = said.text ~ image -%}",
    "{%- endif -%}",
    "{%- endfor -%}",
    "{%- endif -%}",
)


def _human(template: Template, prompt: str, encoder: TextEncoder) -> list[str]:
    """Return the lines that write what a human says."""
    is_caption = 'state.is_first and said.num_images > 0 and said.text == ""'
    opening = [
        "{%- if state.is_first and state.system -%}",
        f"{{%- set written.text = {_filled(template.with_system, template, encoder)} -%}}",
        "{%- elif state.is_first -%}",
        f"{{%- set written.text = {_filled(template.first or template.human, template, encoder)} -%}}",
        "{%- else -%}",
        f"{{%- set written.text = {_filled(template.human, template, encoder)} -%}}",
        "{%- endif -%}",
    ]
    if prompt:
        body = [f"{{%- if {is_caption} -%}}", f"{{%- set said.text = {_quoted(prompt)} -%}}", "{%- endif -%}", *opening]
    else:
        body = [
            f"{{%- if {is_caption} -%}}",
            "{%- set written.text = image * said.num_images -%}",
            "{%- else -%}",
            *opening,
            "{%- endif -%}",
        ]
    return [
        '{%- set written = namespace(text="") -%}',
        *body,
        "{%- set state.text = state.text ~ written.text -%}",
        # A response that words stand before is written otherwise than one behind its image.
        "{%- if written.text -%}",
        '{%- set state.is_prompted = image == "" or not written.text.endswith(image) -%}',
        "{%- endif -%}",
        "{%- set state.is_first = false -%}",
    ]


def _response(template: Template, end: str) -> list[str]:
    """Return the lines that write a response and its end."""
    before, _, after = template.response.partition("{response}")
    written = f"{_quoted(before)} ~ said.text ~ {_quoted(after)}"
    return [
        "{%- if state.is_prompted and said.text -%}",
        f"{{%- set state.text = state.text ~ {written} ~ {_quoted(end)} -%}}",
        "{%- else -%}",
        f"{{%- set state.text = state.text ~ said.text ~ {_quoted(end)} -%}}",
        "{%- endif -%}",
        "{%- set state.is_prompted = false -%}",
        "{%- set state.is_first = false -%}",
    ]


def _spaces(template: Template, encoder: TextEncoder, bos: str, mark: ImageMark | None) -> list[str]:
    """Return the lines that write the space with which a text starts.

    Where a tokenizer writes it by itself only at the very start, a text behind BOS or an image needs it in writing.
    What is no text there, another image or a special token of the template, has none before it.
    """
    if not encoder.needs_space_after_special:
        return []
    words = "".join(vars(template).values()).replace("{bos}", bos).replace("{eos}", encoder.tokenizer.eos_token)
    tokens = [token for token in encoder.special_ids if token in words]
    if mark is not None:
        tokens.append(mark.boi)
    if encoder.start(" a") == encoder.start("a"):
        tokens.append(" ")  # a text with a space of its own is given no second one

    lines = []
    if bos:
        lines.append(f"{{%- set state.text = {_quoted(bos + ' ')} ~ state.text[{len(bos)}:] -%}}")
    if mark is not None:
        lines.append(f"{{%- set state.text = state.text.replace({_quoted(mark.eoi)}, {_quoted(mark.eoi + ' ')}) -%}}")
    for before in filter(None, (bos, mark and mark.eoi)):
        lines += [_without_space(before, token) for token in tokens]
        lines += [
            f"{{%- if state.text.endswith({_quoted(before + ' ')}) -%}}",
            "{%- set state.text = state.text[:-1] -%}",
            "{%- endif -%}",
        ]
    return lines


def _without_space(before: str, behind: str) -> str:
    """Return the line that takes the space out from between two tokens."""
    return f"{{%- set state.text = state.text.replace({_quoted(f'{before} {behind}')}, {_quoted(before + behind)}) -%}}"


def _filled(form: str, template: Template, encoder: TextEncoder) -> str:
    """Return the Jinja expression of a template's string: its words, and what fills its slots."""
    images = f"(image ~ {_quoted(template.image)}) * said.num_images"
    text = "said.text" if "{images}" in form else f"{images} ~ said.text"
    slots = {
        "{images}": images,
        "{human}": text,
        "{system}": "state.system",
        "{bos}": _quoted(encoder.tokenizer.bos_token or ""),
        "{eos}": _quoted(encoder.tokenizer.eos_token),
    }
    pieces = [slots.get(piece) or _quoted(piece) for piece in SLOT.split(form) if piece]
    return " ~ ".join(pieces) or '""'


def _quoted(text: str) -> str:
    """Return a Jinja string of a text: quotes, line ends and what is not ASCII are escaped."""
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'
