"""Build the page's tab that shows side by side what several models write about the same picture."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from visllama.errors import ConfigError
from visllama.release.demo.controls import decoding_of, on, picture_input
from visllama.release.demo.exhibit import Exhibit
from visllama.release.demo.pictures import read_picture
from visllama.release.demo.sessions import Session


class CompareTab:
    """The page's tab that shows side by side what several models write about the same picture.

    Args:
        exhibit: The state that the tabs of the page share.
    """

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def build(self) -> None:
        """Add the tab's components and their events to the page; call it inside `with gr.Tab(...):`."""
        # Side by side on a wide screen, one below the other on a phone.
        with gr.Row():
            with gr.Column(min_width=280):
                picture = picture_input()
            with gr.Column(min_width=280):
                question = gr.Textbox(label="Question (none: captions)", elem_id="question")
                ask = gr.Button("Compare")
                with gr.Accordion("Settings", open=False):
                    settings = self.exhibit.settings()

        with gr.Row():
            names = self.exhibit.models.names
            answers = [gr.Textbox(label=name, lines=3, min_width=240, elem_classes="side") for name in names]
        examples = self.exhibit.example_row()

        on(
            picture.change,
            self._compare,
            inputs=[picture, question, *settings],
            outputs=answers,
            refused=self._nothing(),
            # Of pictures chosen one after the other, the last one is written about.
            trigger_mode="always_last",
            **self.exhibit.model_line(),
        )
        for event in (ask.click, question.submit):
            on(event, self._compare_again, [question, *settings], answers, **self.exhibit.model_line())
        if examples is not None:
            on(examples.select, self.exhibit.example, [], [picture])

    def _nothing(self) -> list[str]:
        """Return the outputs without a picture: an empty text for each model."""
        return [""] * len(self.exhibit.models.names)

    def _compare(self, request: gr.Request, file: object, question: object, *settings: object) -> list[str]:
        """Write about the picture that was chosen; without one, clear the outputs."""
        session = self.exhibit.session(request)

        # The page has no file when the visitor has removed the picture.
        if not file:
            session.pictures.pop("compare", None)
            return self._nothing()

        session.pictures["compare"], name = self.exhibit.read_upload(file)
        return self._write_side_by_side(session, name, question, settings)

    def _compare_again(self, request: gr.Request, question: object, *settings: object) -> list[str]:
        """Write about the last picture again, by the question and the settings that the page has now."""
        session = self.exhibit.session(request)
        if "compare" not in session.pictures:
            raise ConfigError("choose a picture first")
        return self._write_side_by_side(session, "the picture", question, settings)

    def _write_side_by_side(self, session: Session, name: str, question: object, settings: Sequence) -> list[str]:
        """Return the text of each model: the answer to the question or, without one, a caption."""
        picture = read_picture(session.pictures["compare"], name)
        question = question.strip() if isinstance(question, str) else ""

        # Each model is held for its own text alone, so that others may use it meanwhile.
        texts = []
        for served in self.exhibit.models:
            decoding = decoding_of(served, *settings)
            with served.turn() as pipeline:
                if question:
                    text = pipeline.ask(picture, question, **decoding)
                else:
                    text = pipeline.caption(picture, **decoding)

            # One picture, and no list of them, has one text.
            assert isinstance(text, str)
            texts.append(text)

        return texts
