"""The page: captions, a chat, and weights side by side, made of gradio's own components.

Handlers take what the page sent as it is (`preprocess=False`): a file is then read by `images.decode` alone, which
refuses from its header what is too large, and not by gradio first.
"""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from visllama.errors import ConfigError
from visllama.images.decode import SUFFIXES
from visllama.release.demo.attention import caption_and_look, has_patches, heat_map
from visllama.release.demo.conversation import as_page, shown_turn
from visllama.release.demo.pictures import read_picture, read_upload
from visllama.release.demo.served import MOST_BEAMS, MOST_PICTURES, Served, Shelf
from visllama.release.demo.sessions import Session, Sessions

FONTS = ("system-ui", "sans-serif")
CSS = """
.gradio-container {width: 100%; max-width: 60rem !important; margin: 0 auto !important}
.picture img {width: 100%; height: 100%; object-fit: contain}
.talk {display: flex; flex-direction: column-reverse; max-height: 28rem; min-height: 8rem; overflow-y: auto; gap: .6rem}
.talk p {margin: 0; padding: .5rem .8rem; border-radius: .8rem; max-width: 85%; white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid var(--border-color-primary)}
.talk .you {align-self: flex-end; background: var(--color-accent-soft)}
.talk .model {align-self: flex-start; background: var(--background-fill-secondary)}
.talk img {max-width: 10rem; max-height: 10rem; border-radius: .5rem; margin-right: .4rem; image-rendering: auto}
.talk .hint {align-self: center; border: none; color: var(--body-text-color-subdued)}
.caption textarea {font-size: 1.15rem}
.examples .grid-wrap {height: auto; min-height: 0; max-height: none; overflow: visible; padding-top: 1.6rem}
.examples .caption-label {display: none}
"""
HEAD = """<script>
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files].filter(file => file.type.startsWith("image/"));
  const inputs = [...document.querySelectorAll(".picture input[type=file]")];
  const shown = inputs.find(input => input.closest(".picture").offsetParent !== null);
  if (files.length === 0 || shown === undefined) return;
  const chosen = new DataTransfer();
  chosen.items.add(files[0]);
  shown.files = chosen.files;
  shown.dispatchEvent(new Event("change", {bubbles: true}));
});
</script>"""
"""A picture that is pasted anywhere on the page goes where it could be dropped; gradio has a button for it alone."""
_SOURCES = ["upload", "clipboard"]
_METHODS = ["as the weights say", "greedy", "beams", "sampling"]
_log = logging.getLogger("visllama")


class Settings(NamedTuple):
    """The controls of how a text is written, in the order in which their values come."""

    method: gr.Radio
    num_beams: gr.Slider
    temperature: gr.Slider
    max_new_tokens: gr.Slider


class Page:
    """The page of some models.

    Args:
        models: The models.
        examples: Pictures that are ready to be clicked.
        uploads: The folder that gradio keeps uploads in.
        max_bytes: The largest size of a file.
    """

    def __init__(self, models: Shelf, examples: Sequence[Image.Image], uploads: Path, max_bytes: int) -> None:
        self.models, self.examples, self.uploads, self.max_bytes = models, list(examples), uploads, max_bytes
        self.sessions = Sessions()
        # What needs a model waits in one line, as many at once as there are models.
        self._of_models = {"concurrency_id": "models", "concurrency_limit": len(models.names)}

    def build(self) -> gr.Blocks:
        """Return gradio's description of the page."""
        with gr.Blocks(title="visllama", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
            gr.Markdown(f"# visllama\n{html.escape(', '.join(self.models.names))}")
            with gr.Tab("Caption"):
                self._caption_tab()
            with gr.Tab("Chat"):
                self._chat_tab()
            if len(self.models.names) > 1:
                with gr.Tab("Compare"):
                    self._compare_tab()
            blocks.unload(self._forget)
        return blocks

    def _forget(self, request: gr.Request) -> None:
        self.sessions.forget(request.session_hash)

    def _model_choice(self) -> gr.Dropdown:
        names = self.models.names
        return gr.Dropdown(names, value=names[0], label="Weights", visible=len(names) > 1)

    def _example_row(self) -> gr.Gallery | None:
        if not self.examples:
            return None
        return gr.Gallery(
            [(picture, f"Example {number}") for number, picture in enumerate(self.examples, 1)],
            label="Examples", columns=6, height="auto", object_fit="contain", allow_preview=False, interactive=False,
            buttons=[], format="png", elem_classes="examples",
        )  # fmt: skip

    def _example(self, event: gr.SelectData) -> Image.Image:
        is_there = isinstance(event.index, int) and 0 <= event.index < len(self.examples)
        return self.examples[event.index if is_there else 0]

    # Caption

    def _caption_tab(self) -> None:
        model = self._model_choice()
        with gr.Row():
            with gr.Column(min_width=280):
                picture = _picture_input()
            with gr.Column(min_width=280):
                caption = gr.Textbox(label="Caption", lines=2, elem_classes="caption", elem_id="caption")
                words = gr.Radio([], label="Where did a word look?", visible=False, elem_id="words")
                heat = gr.Image(label="Where it looked", visible=False, buttons=["fullscreen"], elem_id="heat")
        with gr.Accordion("Settings", open=False):
            settings = _settings()
            again = gr.Button("Caption again")
        examples = self._example_row()
        outputs, nothing = [caption, words, heat], ("", _hidden_words(), _hidden_heat())
        _on(
            picture.change, self._caption, [picture, model, *settings], outputs, nothing, trigger_mode="always_last",
            **self._of_models,
        )  # fmt: skip
        _on(again.click, self._caption_again, [model, *settings], outputs, **self._of_models)
        _on(words.select, self._look, [words], [heat])
        if examples is not None:
            _on(examples.select, self._example, [], [picture])

    def _caption(self, request: gr.Request, file: object, model: object, *settings: object) -> tuple:
        session = self.sessions.find(request.session_hash)
        if not file:
            session.pictures.pop("caption", None)
            return "", _hidden_words(), _hidden_heat()
        session.pictures["caption"], name = read_upload(file, self.uploads, self.max_bytes)
        return self._write_caption(session, name, model, settings)

    def _caption_again(self, request: gr.Request, model: object, *settings: object) -> tuple:
        session = self.sessions.find(request.session_hash)
        if "caption" not in session.pictures:
            raise ConfigError("choose a picture first")
        return self._write_caption(session, "the picture", model, settings)

    def _write_caption(self, session: Session, name: str, model: object, settings: Sequence) -> tuple:
        served = self.models.choose(model)
        decoding = decoding_of(served, *settings)
        picture = read_picture(session.pictures["caption"], name)
        session.looked = None
        with served.turn() as pipeline:
            if not has_patches(pipeline):
                return pipeline.caption(picture, **decoding), _hidden_words(), _hidden_heat()
            session.looked = caption_and_look(pipeline, picture, decoding)
        choices = [(word, number) for number, word in enumerate(session.looked.words)]
        return session.looked.caption, gr.Radio(choices, value=None, visible=bool(choices)), _hidden_heat()

    def _look(self, request: gr.Request, word: object) -> gr.Image:
        session = self.sessions.find(request.session_hash)
        looked = session.looked
        if looked is None or not isinstance(word, int) or not 0 <= word < len(looked.maps):
            return _hidden_heat()
        picture = read_picture(session.pictures["caption"], "the picture")
        seen = heat_map(picture, looked, word)
        return gr.Image(seen, visible=True, label=f"Where “{looked.words[word]}” looked")

    # Chat

    def _chat_tab(self) -> None:
        model = self._model_choice()
        talk = gr.HTML(as_page([]), elem_id="talk", label="Conversation")
        typed = gr.MultimodalTextbox(
            file_count="multiple", file_types=[f".{suffix}" for suffix in SUFFIXES], sources=["upload"],
            placeholder="Ask something; pictures may be added", show_label=False, label="Your question", elem_id="typed",
        )  # fmt: skip
        anew = gr.Button("New conversation", elem_id="anew")
        with gr.Accordion("Settings", open=False):
            settings = _settings()
        examples = self._example_row()
        _on(typed.submit, self._say, [typed, model, *settings], [talk, typed], **self._of_models)
        _on(anew.click, self._begin, [], [talk, typed])
        _on(model.change, self._begin, [], [talk, typed])
        if examples is not None:
            _on(examples.select, self._example_question, [], [typed])

    def _example_question(self, event: gr.SelectData) -> dict[str, Any]:
        path = self.uploads.parent / f"example_{self.examples.index(self._example(event))}.png"
        return {"text": "What is in the picture?", "files": [str(path)]}

    def _begin(self, request: gr.Request) -> tuple[str, dict[str, Any]]:
        self.sessions.find(request.session_hash).forget_chat()
        return as_page([]), {"text": "", "files": []}

    def _say(self, request: gr.Request, typed: object, model: object, *settings: object) -> Iterator[tuple]:
        session = self.sessions.find(request.session_hash)
        text, pictures = self._typed(typed)
        served = self.models.choose(model)
        decoding = decoding_of(served, *settings)
        if session.model_name != served.name:
            session.forget_chat()
        before = [*session.messages, shown_turn("you", text, pictures)]
        yield as_page([*before, shown_turn("model", "…")]), {"text": "", "files": []}

        answer = ""
        try:
            with served.turn() as pipeline:
                chat = session.chat or pipeline.chat()
                for answer in chat.stream(text, pictures, **decoding):
                    yield as_page([*before, shown_turn("model", answer)]), gr.skip()
        except ConfigError:
            yield as_page(session.messages), typed  # as it was before the question
            raise
        session.chat, session.model_name = chat, served.name
        session.messages = [*before, shown_turn("model", answer)]
        self.sessions.free_caches()

    def _typed(self, typed: object) -> tuple[str, list[Image.Image]]:
        """Return the text and the pictures of a question."""
        given = typed if isinstance(typed, dict) else {}
        text, files = given.get("text"), given.get("files")
        text = text.strip() if isinstance(text, str) else ""
        if len(files or []) > MOST_PICTURES:
            raise ConfigError(f"at most {MOST_PICTURES} pictures with a question")
        contents = [read_upload(file, self.uploads, self.max_bytes) for file in files or []]
        pictures = [read_picture(content, name) for content, name in contents]
        if not text:
            raise ConfigError("type a question")
        return text, pictures

    # Compare

    def _compare_tab(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                picture = _picture_input()
            with gr.Column(min_width=280):
                question = gr.Textbox(label="Question (none: captions)", elem_id="question")
                ask = gr.Button("Compare")
                with gr.Accordion("Settings", open=False):
                    settings = _settings()
        with gr.Row():
            answers = [
                gr.Textbox(label=name, lines=3, min_width=240, elem_classes="side") for name in self.models.names
            ]
        examples = self._example_row()
        given = [question, *settings]
        nothing = [""] * len(answers)
        _on(
            picture.change, self._compare, [picture, *given], answers, nothing, trigger_mode="always_last",
            **self._of_models,
        )  # fmt: skip
        for event in (ask.click, question.submit):
            _on(event, self._compare_again, given, answers, **self._of_models)
        if examples is not None:
            _on(examples.select, self._example, [], [picture])

    def _compare(self, request: gr.Request, file: object, *given: object) -> list[str]:
        session = self.sessions.find(request.session_hash)
        if not file:
            session.pictures.pop("compare", None)
            return [""] * len(self.models.names)
        session.pictures["compare"], name = read_upload(file, self.uploads, self.max_bytes)
        return self._write_side_by_side(session, name, *given)

    def _compare_again(self, request: gr.Request, *given: object) -> list[str]:
        session = self.sessions.find(request.session_hash)
        if "compare" not in session.pictures:
            raise ConfigError("choose a picture first")
        return self._write_side_by_side(session, "the picture", *given)

    def _write_side_by_side(self, session: Session, name: str, question: object, *settings: object) -> list[str]:
        picture = read_picture(session.pictures["compare"], name)
        asked = question.strip() if isinstance(question, str) else ""
        texts = []
        for served in self.models:
            decoding = decoding_of(served, *settings)
            with served.turn() as pipeline:
                written = pipeline.ask(picture, asked, **decoding) if asked else pipeline.caption(picture, **decoding)
            texts.append(written)
        return texts


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


def _settings() -> Settings:
    return Settings(
        gr.Radio(_METHODS, value=_METHODS[0], label="How a text is chosen"),
        gr.Slider(2, MOST_BEAMS, value=5, step=1, label="Beams"),
        gr.Slider(0.1, 2, value=0.7, step=0.1, label="Temperature, for sampling"),
        gr.Slider(1, 256, value=40, step=1, label="Most new tokens"),
    )


def _picture_input() -> gr.Image:
    return gr.Image(
        type="filepath", image_mode=None, sources=_SOURCES, label="Picture", height=320, buttons=[],
        elem_classes="picture",
        placeholder="Drop a picture here, paste it, or click to choose one",
    )  # fmt: skip


def _hidden_words() -> gr.Radio:
    return gr.Radio([], value=None, visible=False)


def _hidden_heat() -> gr.Image:
    return gr.Image(None, visible=False)


def _on(
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
            gr.Warning(html.escape(str(error)), title="Not possible")
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
