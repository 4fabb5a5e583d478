"""Build the page's tab of a chat about pictures, in which answers appear word by word."""

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
    """The page's tab of a chat about pictures, in which answers appear word by word.

    Args:
        exhibit: The state that the tabs of the page share.
    """

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def build(self) -> None:
        """Add the tab's components and their events to the page; call it inside `with gr.Tab(...):`."""
        model = self.exhibit.model_choice()
        talk = gr.HTML(as_page([]), elem_id="talk", label="Conversation")
        question = gr.MultimodalTextbox(
            file_count="multiple",
            file_types=[f".{suffix}" for suffix in SUFFIXES],
            sources=["upload"],
            placeholder="Ask something; pictures may be added",
            show_label=False,
            label="Your question",
            elem_id="typed",
        )
        anew = gr.Button("New conversation", elem_id="anew")

        with gr.Accordion("Settings", open=False):
            settings = self.exhibit.settings()
        examples = self.exhibit.example_row()

        on(
            question.submit,
            self._answer,
            inputs=[question, model, *settings],
            outputs=[talk, question],
            # A question may be sent while the one before is still being answered.
            trigger_mode="multiple",
            **self.exhibit.model_line(),
        )

        # Another model cannot go on from the cache of the one before.
        on(anew.click, self._begin, [], [talk, question])
        on(model.change, self._begin, [], [talk, question])
        if examples is not None:
            on(examples.select, self._example_question, [], [question])

    def _example_question(self, event: gr.SelectData) -> dict[str, Any]:
        """Put a question about the example that was clicked into the textbox."""
        path = self.exhibit.example_file(event)
        return {"text": "What is in the picture?", "files": [str(path)]}

    def _begin(self, request: gr.Request) -> tuple[str, dict[str, Any]]:
        """Delete the page's conversation, and return an empty one and an empty textbox."""
        self.exhibit.session(request).forget_chat()
        return as_page([]), _empty_question()

    def _answer(self, request: gr.Request, question: object, model: object, *settings: object) -> Iterator[tuple]:
        """Yield the conversation as it grows by a question and its answer, and the content of the textbox."""
        session = self.exhibit.session(request)
        text, pictures = self._read_question(question)
        served = self.exhibit.models.choose(model)
        decoding = decoding_of(served, *settings)

        # The page shows the question at once, also where others are answered first.
        question_turn = shown_turn("you", text, pictures)
        yield as_page([*session.messages, question_turn, shown_turn("model", "…")]), _empty_question()

        try:
            with served.turn() as pipeline:
                # Looked up in here: a question that was asked before this one may only now be answered.
                if session.model_name != served.name:
                    session.forget_chat()
                chat = session.chat or pipeline.chat()
                messages_before = session.messages
                messages = messages_before

                for answer in chat.stream(text, pictures, **decoding):
                    # The visitor has begun a new conversation meanwhile.
                    if session.messages is not messages_before:
                        yield as_page(session.messages), gr.skip()
                        return
                    messages = [*messages_before, question_turn, shown_turn("model", answer)]
                    yield as_page(messages), gr.skip()

                session.chat = chat
                session.model_name = served.name
                session.messages = messages
        except ConfigError:
            # The page shows what it showed before the question, which can be changed and sent again.
            yield as_page(session.messages), question
            raise

        # The caches of many chats would fill the device's memory.
        self.exhibit.sessions.free_caches()

    def _read_question(self, question: object) -> tuple[str, list[Image.Image]]:
        """Return the text and the decoded pictures that the visitor has put into the textbox.

        Raises:
            ConfigError: If there is no text, there are too many pictures, or one cannot be read.
        """
        # The value comes from the client, which may send anything.
        content = question if isinstance(question, dict) else {}
        text = content.get("text")
        files = content.get("files") or []
        if len(files) > MOST_PICTURES:
            raise ConfigError(f"at most {MOST_PICTURES} pictures with a question")

        uploads = [self.exhibit.read_upload(file) for file in files]
        pictures = [read_picture(upload, name) for upload, name in uploads]

        text = text.strip() if isinstance(text, str) else ""
        if not text:
            raise ConfigError("type a question")
        return text, pictures


def _empty_question() -> dict[str, Any]:
    """Return the content of the textbox after a question was sent; a new one each time, as gradio writes into it."""
    return {"text": "", "files": []}
