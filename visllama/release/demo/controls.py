"""Build the controls that the tabs of the page share, and connect events of controls with functions."""

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
    """The page's controls of how a text is generated, in the order in which functions get their values.

    Attributes:
        method: The choice of greedy search, beams or sampling, or of the weights' own way.
        num_beams: The number of beams.
        temperature: The temperature for sampling.
        max_new_tokens: The largest number of new tokens.
    """

    method: gr.Radio
    num_beams: gr.Slider
    temperature: gr.Slider
    max_new_tokens: gr.Slider


def settings_of(num_new_tokens: int) -> Settings:
    """Build the controls of how a text is generated, and add them to the page that is being built.

    Args:
        num_new_tokens: The largest number of new tokens that is set until a visitor chooses another, from 1 to 256.
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
    """Return the arguments of transformers' `generate` for the values of the page's controls.

    Args:
        served: The model, with the server's own arguments, which hold for all that a visitor does not choose.
        method: "greedy", "beams" or "sampling"; any other value keeps the server's own arguments.
        num_beams: The number of beams, used by "beams" alone.
        temperature: The temperature, used by "sampling" alone.
        max_new_tokens: The largest number of new tokens, used by all; None keeps the server's own.

    Raises:
        ConfigError: If a number that is used has another type, or is out of its range.
    """
    # Sampling is without beams here, also if the server's own arguments have some.
    if method == "sampling":
        return served.settings(num_beams=1, temperature=temperature, max_new_tokens=max_new_tokens)
    if method == "beams":
        return served.settings(num_beams=num_beams, max_new_tokens=max_new_tokens)
    if method == "greedy":
        return served.settings(num_beams=1, max_new_tokens=max_new_tokens)

    return served.settings(max_new_tokens=max_new_tokens)


def picture_input() -> gr.Image:
    """Build an input for a picture that is dropped, pasted or chosen, and add it to the page that is being built.

    Its value is the uploaded file. Web addresses and cameras are not offered.
    """
    # `image_mode=None` keeps the file's own colors, as gradio is not to convert it.
    return gr.Image(
        type="filepath",
        format="png",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Picture",
        height=320,
        buttons=[],
        elem_classes="picture",
        placeholder="Drop a picture here, paste it, or click to choose one",
    )


def on(
    event: Callable,
    handler: Callable,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    refused: object = None,
    **options: Any,
) -> None:
    """Connect an event of the page with a function that answers it.

    If the function raises a `ConfigError`, the visitor sees its message. Any other error is logged, and the visitor
    sees only that something went wrong.

    Args:
        event: An event of one of gradio's components, such as `button.click`.
        handler: The function. It is called with the values of `inputs` as the page sent them, and with gradio's request
            or event data if its signature asks for them; a generator fills the outputs at each value that it yields.
        inputs: The components whose values the function takes.
        outputs: The components that the function's result fills.
        refused: The values of the outputs after a `ConfigError`; None leaves them as they are.
        options: Further keyword arguments of gradio's event.
    """
    event(
        _friendly(handler, gr.skip() if refused is None else refused),
        list(inputs),
        list(outputs),
        # The values as the page sent them, so that gradio opens no file (`page.py`).
        preprocess=False,
        api_visibility="private",
        show_progress="minimal",
        **options,
    )


def _friendly(handler: Callable, refused: object) -> Callable:
    """Return a function that calls a handler, and shows the visitor a message if the handler raises.

    A `ConfigError` is shown as it is, and the outputs become `refused`. Any other error is logged, and the visitor sees
    that something went wrong, with no detail of the server.
    """

    def show(error: Exception) -> None:
        # Escaped, since gradio shows a message as HTML, and the text may hold a client's own words.
        if isinstance(error, ConfigError):
            gr.Warning(html.escape(str(error)))
        else:
            _log.exception("the demo's page")
            raise gr.Error("something went wrong here; the server's terminal says what", print_exception=False)

    # Both keep the handler's signature, by which gradio finds out whether it takes the request or the event.
    @functools.wraps(handler)
    def answer(*values: object) -> object:
        try:
            return handler(*values)
        except Exception as error:
            show(error)
            return refused

    @functools.wraps(handler)
    def stream(*values: object) -> Iterator:
        try:
            yield from handler(*values)
        except Exception as error:
            show(error)
            yield refused

    return stream if inspect.isgeneratorfunction(handler) else answer
