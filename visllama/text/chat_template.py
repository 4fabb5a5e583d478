"""Read a tokenizer's own chat template as one of our templates: render it with marks, and cut it at them."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedTokenizerBase

from visllama.errors import ConfigError
from visllama.text.template import Template

_SYSTEM = "visllama-system-mark"
_TURNS = [f"visllama-turn-{number}-mark" for number in range(4)]
"""The texts of two turns of each speaker: the first and a later one, which a template may write differently."""


def read_chat_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return a tokenizer's own `chat_template` (Jinja code) as a `Template`, whose strings write the same text.

    The Jinja code is rendered by transformers, in a sandbox, over a conversation of four turns with known texts; what
    stands between these texts becomes the strings. The first special token behind a response becomes `end`. Images,
    which a chat template does not know, stand before a human's text, each followed by a line break.

    Raises:
        ConfigError: If the tokenizer has no chat template, or if its template fails, leaves out or repeats a turn,
            writes a later turn otherwise than the first, or ends a response with no special token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("template=tokenizer: the language model's tokenizer has no chat_template: choose another one")

    # Human and gpt by turns: what opens the response is behind the human's text, what closes it before the next one.
    first, opens, closes, opens_again, last = _render(tokenizer, with_system=False)
    tail, end_token, between = _cut_at_end_token(tokenizer, closes)
    if opens_again != opens or not last.startswith(tail + end_token):
        raise ConfigError("template=tokenizer: its chat_template writes a later turn otherwise than the first")

    # A space before the response is learned with it, as the space of its first word.
    opening = opens.rstrip(" ")
    space = opens[len(opening) :]

    try:
        first_with_system = _render(tokenizer, with_system=True)[0]
    except ConfigError:
        # A template that knows no system text may raise an error, or leave it out.
        first_with_system = f"{first}{_SYSTEM}\n"

    # Our samples begin with BOS already.
    bos = tokenizer.bos_token or ""
    first = first.removeprefix(bos)
    first_with_system = first_with_system.removeprefix(bos)

    with_system = f"{first_with_system}{{human}}{opening}"
    return Template(
        human=f"{between}{{human}}{opening}",
        first=f"{first}{{human}}{opening}",
        with_system=with_system.replace(_SYSTEM, "{system}"),
        response=f"{space}{{response}}{tail}",
        end=end_token,
        image="\n",
    )


def _render(tokenizer: PreTrainedTokenizerBase, with_system: bool) -> list[str]:
    """Return the five texts that the template writes before, between and after the four turns of a conversation.

    Args:
        tokenizer: The tokenizer that has the template.
        with_system: Whether a system text (`_SYSTEM`) comes before the turns; it then stands in the first text.

    Raises:
        ConfigError: If the template fails, or does not write each turn once.
    """
    turns = []
    if with_system:
        turns.append({"role": "system", "content": _SYSTEM})
    for number, mark in enumerate(_TURNS):
        role = "user" if number % 2 == 0 else "assistant"
        turns.append({"role": role, "content": mark})

    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    except Exception as error:
        # A template may raise errors of any type.
        raise ConfigError(f"template=tokenizer: its chat_template fails: {error}") from error

    rest = cast(str, rendered)
    pieces = []
    for mark in _TURNS:
        before, mark_found, rest = rest.partition(mark)
        pieces.append(before)

        # Each mark has to be found once, in the order of the turns.
        if not mark_found or mark in rest or (with_system and _SYSTEM not in pieces[0]):
            raise ConfigError("template=tokenizer: its chat_template leaves out turns, or writes them twice")
    return [*pieces, rest]


def _cut_at_end_token(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str, str]:
    """Cut a text at its first special token: return the text before it (blanks at most), the token, and the rest.

    Raises:
        ConfigError: If there is no special token, or more than spaces before it.
    """
    special = set(tokenizer.all_special_tokens)
    for added_token in tokenizer.added_tokens_decoder.values():
        if added_token.special:
            special.add(str(added_token))

    candidates = [token for token in special if token in text]
    if not candidates:
        raise ConfigError("template=tokenizer: its chat_template ends a response with no special token")

    # One token may begin with another one: the longest counts, as for the tokenizer.
    candidates.sort(key=len, reverse=True)
    token = min(candidates, key=text.index)
    before, _, behind = text.partition(token)
    if before.strip(" "):
        raise ConfigError("template=tokenizer: its chat_template ends a response with no special token")
    return before, token, behind
