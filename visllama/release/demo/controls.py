"""What the tabs of the page are made of: controls that they share, and how an event is answered."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from visllama.errors import ConfigError
from visllama.release.demo.served import MOST_BEAMS, Served

_METHODS = ["as the weights say", "greedy", "beams", "sampling"]
_log = logging.getLogger("visllama")


class Settings(NamedTuple):
    """The controls of how a text is written, in the order in which their values come."""

    method: gr.Radio
    num_beams: gr.Slider
    temperature: gr.Slider
    max_new_tokens: gr.Slider


def settings_of(num_new_tokens: int) -> Settings:
    """Return the controls of how a text is written.

    Args:
        num_new_tokens: The largest number of new tokens, until a visitor chooses another.
    """
    return Settings(
        gr.Radio(_METHODS, value=_METHODS[0], label="How a text is chosen"),
        gr.Slider(2, MOST_BEAMS, value=5, step=1, label="Beams"),
        gr.Slider(0.1, 2, value=0.7, step=0.1, label="Temperature, for sampling"),
        gr.Slider(1, 256, value=num_new_tokens, step=1, label="Most new tokens"),
    )


def decoding_of(
    served: Served, method: object, num_beams: object, temperature: object, max_new_tokens: object
) -> dict[str, Any]:
    """Return the settings of `generate` that the page's controls stand for.

    Raises:
        ConfigError: If one is none that the page can send.
    """
    if method == "sampling":
        return served.settings(num_beams=1, temperature=temperature, max_new_tokens=max_new_tokens)
    if method in ("beams", "greedy"):
        return served.settings(num_beams=num_beams if method == "beams" else 1, max_new_tokens=max_new_tokens)
    return served.settings(max_new_tokens=max_new_tokens)


def picture_input() -> gr.Image:
    """Return a place for a picture: dropped, pasted or chosen, and neither an address nor a camera."""
    return gr.Image(
        type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"], label="Picture", height=320,
        buttons=[], elem_classes="picture", placeholder="Drop a picture here, paste it, or click to choose one",
    )  # fmt: skip


def on(
    event: Callable,
    handler: Callable,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    refused: object = None,
    **options: Any,
) -> None:
    """Let a handler answer an event, and show what it refuses as a message.

    Args:
        event: The event, as gradio's components have it.
        handler: It is called with what the page sent.
        inputs: The components whose values it takes.
        outputs: The components that it fills.
        refused: What they are filled with where it refuses; None leaves them as they are.
        options: Further ones of gradio's.
    """
    event(
        _friendly(handler, gr.skip() if refused is None else refused), list(inputs), list(outputs), preprocess=False,
        api_visibility="private", show_progress="minimal", **options,
    )  # fmt: skip


def _friendly(handler: Callable, refused: object) -> Callable:
    """Return a handler that shows our errors as a message; any other one is logged, and told in plain words."""

    def tell(error: Exception) -> None:
        if isinstance(error, ConfigError):
            gr.Warning(html.escape(str(error)))
        else:
            _log.exception("the demo's page")
            raise gr.Error("something went wrong here; the server's terminal says what", print_exception=False)

    @functools.wraps(handler)
    def answer(*given: object) -> object:
        try:
            return handler(*given)
        except Exception as error:
            tell(error)
            return refused

    @functools.wraps(handler)
    def stream(*given: object) -> Iterator:
        try:
            yield from handler(*given)
        except Exception as error:
            tell(error)
            yield refused

    return stream if inspect.isgeneratorfunction(handler) else answer
