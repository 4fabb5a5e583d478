"""The tab that talks: several questions, with any pictures, answered word by word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from visllama.errors import ConfigError
from visllama.images.decode import SUFFIXES
from visllama.release.demo.controls import decoding_of, on
from visllama.release.demo.conversation import as_page, shown_turn
from visllama.release.demo.exhibit import Exhibit
from visllama.release.demo.pictures import read_picture
from visllama.release.demo.served import MOST_PICTURES


class ChatTab:
    """The tab that talks: several questions, with any pictures, answered word by word.

    Args:
        exhibit: What there is to show.
    """

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def build(self) -> None:
        """Add the components and what they do to the page that is being built."""
        model = self.exhibit.model_choice()
        talk = gr.HTML(as_page([]), elem_id="talk", label="Conversation")
        typed = gr.MultimodalTextbox(
            file_count="multiple", file_types=[f".{suffix}" for suffix in SUFFIXES], sources=["upload"],
            placeholder="Ask something; pictures may be added", show_label=False, label="Your question",
            elem_id="typed",
        )  # fmt: skip
        anew = gr.Button("New conversation", elem_id="anew")
        with gr.Accordion("Settings", open=False):
            settings = self.exhibit.settings()
        examples = self.exhibit.example_row()
        on(
            typed.submit, self._say, [typed, model, *settings], [talk, typed], trigger_mode="multiple",
            **self.exhibit.model_line(),
        )  # fmt: skip
        on(anew.click, self._begin, [], [talk, typed])
        on(model.change, self._begin, [], [talk, typed])
        if examples is not None:
            on(examples.select, self._example_question, [], [typed])

    def _example_question(self, event: gr.SelectData) -> dict[str, Any]:
        path = self.exhibit.example_file(event)
        return {"text": "What is in the picture?", "files": [str(path)]}

    def _begin(self, request: gr.Request) -> tuple[str, dict[str, Any]]:
        self.exhibit.session(request).forget_chat()
        return as_page([]), {"text": "", "files": []}

    def _say(self, request: gr.Request, typed: object, model: object, *settings: object) -> Iterator[tuple]:
        session = self.exhibit.session(request)
        text, pictures = self._typed(typed)
        served = self.exhibit.models.choose(model)
        decoding = decoding_of(served, *settings)
        asked, empty = shown_turn("you", text, pictures), {"text": "", "files": []}
        yield as_page([*session.messages, asked, shown_turn("model", "…")]), empty

        try:
            with served.turn() as pipeline:
                # Looked up in here: a question that was asked before this one may only now be answered.
                if session.model_name != served.name:
                    session.forget_chat()
                chat, before = session.chat or pipeline.chat(), session.messages
                for answer in chat.stream(text, pictures, **decoding):
                    if session.messages is not before:  # a new conversation was begun meanwhile
                        yield as_page(session.messages), gr.skip()
                        return
                    said = [*before, asked, shown_turn("model", answer)]
                    yield as_page(said), gr.skip()
                session.chat, session.model_name, session.messages = chat, served.name, said
        except ConfigError:
            yield as_page(session.messages), typed  # as it was before the question
            raise
        self.exhibit.sessions.free_caches()

    def _typed(self, typed: object) -> tuple[str, list[Image.Image]]:
        """Return the text and the pictures of a question."""
        given = typed if isinstance(typed, dict) else {}
        text, files = given.get("text"), given.get("files")
        text = text.strip() if isinstance(text, str) else ""
        if len(files or []) > MOST_PICTURES:
            raise ConfigError(f"at most {MOST_PICTURES} pictures with a question")
        contents = [self.exhibit.read_upload(file) for file in files or []]
        pictures = [read_picture(content, name) for content, name in contents]
        if not text:
            raise ConfigError("type a question")
        return text, pictures
