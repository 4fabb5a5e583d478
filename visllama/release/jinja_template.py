"""Turn a run's prompt template into a Jinja chat template, by which other libraries write the same prompts."""

from __future__ import annotations

from typing import NamedTuple

from visllama.text.encode import TextEncoder
from visllama.text.template import SLOT, Template


class ImageMark(NamedTuple):
    """The names of the three tokens that stand for an image in the text of a prompt; `str()` joins them in their order.

    Attributes:
        boi: The marker before an image (begin of image).
        image: The image token, which the image's vectors replace.
        eoi: The marker after an image (end of image).
    """

    boi: str
    image: str
    eoi: str

    def __str__(self) -> str:
        return self.boi + self.image + self.eoi


def write_jinja(template: Template, prompt: str, encoder: TextEncoder, mark: ImageMark | None) -> str:
    """Return the source of a Jinja chat template that writes the same text as a run's own template.

    The Jinja template takes messages as transformers and vLLM do: `content` is a text, or a list of parts of type
    "image" and "text". Images at the start of a message are moved to where the run's template has its images; others
    stay where they are. A first message that holds images alone asks for a caption. A message whose role is neither
    "system" nor "user" counts as the assistant's. The text begins with the tokenizer's BOS (begin of sequence) token,
    if there is one.

    Args:
        template: The run's template, by which turns of a conversation are written.
        prompt: The text by which the run asked for a caption; "" if a caption directly follows its image.
        encoder: The text encoder of the language model's tokenizer.
        mark: The names of the tokens that stand for an image; None writes nothing for an image, for callers that insert
            vectors themselves.
    """
    bos = encoder.tokenizer.bos_token or ""
    image = "" if mark is None else str(mark)

    lines = [
        f"{{%- set image = {_quoted(image)} -%}}",
        # Jinja forgets at the end of a loop what was set inside it, but for the attributes of a namespace.
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
"""Lines of Jinja that read a message: `said` gets the text and the number of images before the text."""


def _human(template: Template, prompt: str, encoder: TextEncoder) -> list[str]:
    """Return the lines of Jinja that write a user's message."""
    is_caption = 'state.is_first and said.num_images > 0 and said.text == ""'
    with_system = _filled(template.with_system, template, encoder)
    first = _filled(template.first or template.human, template, encoder)
    later = _filled(template.human, template, encoder)

    turn = [
        "{%- if state.is_first and state.system -%}",
        f"{{%- set written.text = {with_system} -%}}",
        "{%- elif state.is_first -%}",
        f"{{%- set written.text = {first} -%}}",
        "{%- else -%}",
        f"{{%- set written.text = {later} -%}}",
        "{%- endif -%}",
    ]

    # A caption is asked for by the run's prompt or, without one, follows its images with no words between.
    if prompt:
        body = [
            f"{{%- if {is_caption} -%}}",
            f"{{%- set said.text = {_quoted(prompt)} -%}}",
            "{%- endif -%}",
            *turn,
        ]
    else:
        body = [
            f"{{%- if {is_caption} -%}}",
            "{%- set written.text = image * said.num_images -%}",
            "{%- else -%}",
            *turn,
            "{%- endif -%}",
        ]

    return [
        '{%- set written = namespace(text="") -%}',
        *body,
        "{%- set state.text = state.text ~ written.text -%}",
        # The template's response has its own form after words, and none directly after an image.
        "{%- if written.text -%}",
        '{%- set state.is_prompted = image == "" or not written.text.endswith(image) -%}',
        "{%- endif -%}",
        "{%- set state.is_first = false -%}",
    ]


def _response(template: Template, end: str) -> list[str]:
    """Return the lines of Jinja that write an assistant's message, and the token that ends it."""
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
    """Return the lines of Jinja that put a space between BOS or an image and a text; none if no space is needed.

    Some tokenizers begin a text with a space, but do so themselves only at the very start: after BOS or an image it has
    to be written. If no text follows, but another image or a special token of the template, it is taken out again.
    """
    if not encoder.needs_space_after_special:
        return []

    # Everything before which no space belongs.
    words = "".join(vars(template).values())
    words = words.replace("{bos}", bos).replace("{eos}", encoder.tokenizer.eos_token)
    followers = [token for token in encoder.special_ids if token in words]
    if mark is not None:
        followers.append(mark.boi)
    # A text with a space of its own gets no second one, where the tokenizer makes no difference.
    if encoder.start(" a") == encoder.start("a"):
        followers.append(" ")

    # First a space after BOS at the start and after every image, then none where it does not belong.
    lines = []
    if bos:
        spaced_bos = _quoted(f"{bos} ")
        lines.append(f"{{%- set state.text = {spaced_bos} ~ state.text[{len(bos)}:] -%}}")
    if mark is not None:
        lines.append(_replacement(mark.eoi, f"{mark.eoi} "))
    if bos:
        lines += _without_spaces(bos, followers)
    if mark is not None:
        lines += _without_spaces(mark.eoi, followers)

    return lines


def _without_spaces(token: str, followers: list[str]) -> list[str]:
    """Return the lines of Jinja that take out the space between a token and each of its followers or the text's end."""
    return [
        *(_replacement(f"{token} {follower}", token + follower) for follower in followers),
        f"{{%- if state.text.endswith({_quoted(token + ' ')}) -%}}",
        "{%- set state.text = state.text[:-1] -%}",
        "{%- endif -%}",
    ]


def _replacement(old: str, new: str) -> str:
    """Return the line of Jinja that replaces one text by another wherever it stands in the rendered text."""
    return f"{{%- set state.text = state.text.replace({_quoted(old)}, {_quoted(new)}) -%}}"


def _filled(form: str, template: Template, encoder: TextEncoder) -> str:
    """Return the Jinja expression of one string of a template, with an expression in the place of each slot `{...}`."""
    images = f"(image ~ {_quoted(template.image)}) * said.num_images"

    # Without a slot of their own, images open the text.
    human = "said.text" if "{images}" in form else f"{images} ~ said.text"
    slots = {
        "{images}": images,
        "{human}": human,
        "{system}": "state.system",
        "{bos}": _quoted(encoder.tokenizer.bos_token or ""),
        "{eos}": _quoted(encoder.tokenizer.eos_token),
    }

    pieces = [slots.get(piece) or _quoted(piece) for piece in SLOT.split(form) if piece]
    return " ~ ".join(pieces) or '""'


def _quoted(text: str) -> str:
    """Return a text as a string literal of Jinja, with quotes, line ends and characters beyond ASCII escaped."""
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'
