"""The tab that shows what several weights write about the same picture, side by side."""

from __future__ import annotations

import gradio as gr

from visllama.errors import ConfigError
from visllama.release.demo.controls import decoding_of, on, picture_input
from visllama.release.demo.exhibit import Exhibit
from visllama.release.demo.pictures import read_picture
from visllama.release.demo.sessions import Session


class CompareTab:
    """The tab that shows what several weights write about the same picture, side by side.

    Args:
        exhibit: What there is to show.
    """

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def build(self) -> None:
        """Add the components and what they do to the page that is being built."""
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
        given = [question, *settings]
        nothing = [""] * len(answers)
        on(
            picture.change, self._compare, [picture, *given], answers, nothing, trigger_mode="always_last",
            **self.exhibit.model_line(),
        )  # fmt: skip
        for event in (ask.click, question.submit):
            on(event, self._compare_again, given, answers, **self.exhibit.model_line())
        if examples is not None:
            on(examples.select, self.exhibit.example, [], [picture])

    def _compare(self, request: gr.Request, file: object, *given: object) -> list[str]:
        session = self.exhibit.session(request)
        if not file:
            session.pictures.pop("compare", None)
            return [""] * len(self.exhibit.models.names)
        session.pictures["compare"], name = self.exhibit.read_upload(file)
        return self._write_side_by_side(session, name, *given)

    def _compare_again(self, request: gr.Request, *given: object) -> list[str]:
        session = self.exhibit.session(request)
        if "compare" not in session.pictures:
            raise ConfigError("choose a picture first")
        return self._write_side_by_side(session, "the picture", *given)

    def _write_side_by_side(self, session: Session, name: str, question: object, *settings: object) -> list[str]:
        picture = read_picture(session.pictures["compare"], name)
        asked = question.strip() if isinstance(question, str) else ""
        texts = []
        for served in self.exhibit.models:
            decoding = decoding_of(served, *settings)
            with served.turn() as pipeline:
                written = pipeline.ask(picture, asked, **decoding) if asked else pipeline.caption(picture, **decoding)
            texts.append(written)
        return texts
