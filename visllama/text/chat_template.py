"""A tokenizer's own chat template, read as one of our templates: rendered once with marks, and cut at them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from visllama.errors import ConfigError
from visllama.text.template import Template

_SYSTEM, _TURNS = "visllama-system-mark", [f"visllama-turn-{number}-mark" for number in range(4)]


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Read the template that a tokenizer brings (transformers renders it in a sandbox).

    A response ends with the first special token behind it.

    Raises:
        ConfigError: If the tokenizer has none, or one that writes turns otherwise than one after the other.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("template=tokenizer: the language model's tokenizer has no chat_template: choose another one")
    first, opens, closes, opens_again, last = _rendered(tokenizer, system=False)
    tail, end, then = _at_end_token(tokenizer, closes)
    if opens_again != opens or not last.startswith(tail + end):
        raise ConfigError("template=tokenizer: its chat_template writes a later turn otherwise than the first")
    opening = opens.rstrip(" ")  # a space before the response is learned with it, as a word's own
    try:
        with_system = _rendered(tokenizer, system=True)[0]
    except ConfigError:  # it knows no system
        with_system = f"{first}{_SYSTEM}\n"
    bos = tokenizer.bos_token or ""
    first, with_system = (text.removeprefix(bos) for text in (first, with_system))  # ours stands before all
    return Template(
        human=f"{then}{{human}}{opening}",
        first=f"{first}{{human}}{opening}",
        with_system=f"{with_system}{{human}}{opening}".replace(_SYSTEM, "{system}"),
        response=f"{opens[len(opening) :]}{{response}}{tail}",
        end=end,
        image="\n",
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, system: bool) -> list[str]:
    """Return what stands around four turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": mark} for i, mark in enumerate(_TURNS)]
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "system", "content": _SYSTEM}] * system + turns, tokenize=False, add_generation_prompt=False
        )
    except Exception as error:  # of whatever type the template raises
        raise ConfigError(f"template=tokenizer: its chat_template fails: {error}") from error
    pieces = []
    for mark in _TURNS:
        before, found, text = text.partition(mark)
        pieces.append(before)
        if not found or mark in text or (system and _SYSTEM not in pieces[0]):
            raise ConfigError("template=tokenizer: its chat_template leaves out turns, or writes them twice")
    return [*pieces, text]


def _at_end_token(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str, str]:
    """Cut a text at its first special token: what is before, the token, what is behind."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    places = [(text.index(token), token) for token in {*known, *tokenizer.all_special_tokens} if token in text]
    if not places or text[: min(places)[0]].strip(" "):
        raise ConfigError("template=tokenizer: its chat_template ends a response with no special token")
    place, token = min(places, key=lambda found: (found[0], -len(found[1])))
    return text[:place], token, text[place + len(token) :]
