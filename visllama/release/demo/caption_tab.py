"""Build the page's tab that captions a picture at once, and shows where in the picture each word of it looked."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from visllama.errors import ConfigError
from visllama.inference.attention import caption_and_look, has_patches, heat_map
from visllama.release.demo.controls import decoding_of, on, picture_input
from visllama.release.demo.exhibit import Exhibit
from visllama.release.demo.pictures import read_picture
from visllama.release.demo.sessions import Session

_Outputs = tuple[str, gr.Radio, gr.Image]
"""The caption, its words, and the heat map of one of them."""


class CaptionTab:
    """The page's tab that captions a picture at once, and shows where in the picture each word looked.

    Where a word looked is the model's attention to the patches of the picture, drawn as a heat map.

    Args:
        exhibit: The state that the tabs of the page share.
    """

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def build(self) -> None:
        """Add the tab's components and their events to the page; call it inside `with gr.Tab(...):`."""
        model = self.exhibit.model_choice()

        # Side by side on a wide screen, one below the other on a phone.
        with gr.Row():
            with gr.Column(min_width=280):
                picture = picture_input()
            with gr.Column(min_width=280):
                caption = gr.Textbox(label="Caption", lines=2, elem_classes="caption", elem_id="caption")
                words = gr.Radio([], label="Where did a word look?", visible=False, elem_id="words")
                heat = gr.Image(label="Where it looked", visible=False, buttons=["fullscreen"], elem_id="heat")

        with gr.Accordion("Settings", open=False):
            settings = self.exhibit.settings()
            again = gr.Button("Caption again")
        examples = self.exhibit.example_row()

        outputs = [caption, words, heat]
        on(
            picture.change,
            self._caption,
            inputs=[picture, model, *settings],
            outputs=outputs,
            refused=_nothing(),
            # Of pictures chosen one after the other, the last one is captioned.
            trigger_mode="always_last",
            **self.exhibit.model_line(),
        )
        on(
            again.click,
            self._caption_again,
            inputs=[model, *settings],
            outputs=outputs,
            **self.exhibit.model_line(),
        )

        # A heat map is drawn from what the last caption has left, and needs no model.
        on(words.select, self._look, [words], [heat])
        if examples is not None:
            on(examples.select, self.exhibit.example, [], [picture])

    def _caption(self, request: gr.Request, file: object, model: object, *settings: object) -> _Outputs:
        """Caption the picture that was chosen; without one, clear the outputs."""
        session = self.exhibit.session(request)
        session.looked = None

        # The page has no file when the visitor has removed the picture.
        if not file:
            session.pictures.pop("caption", None)
            return _nothing()

        session.pictures["caption"], name = self.exhibit.read_upload(file)
        return self._write_caption(session, name, model, settings)

    def _caption_again(self, request: gr.Request, model: object, *settings: object) -> _Outputs:
        """Caption the last picture again, by the settings that the page has now."""
        session = self.exhibit.session(request)
        if "caption" not in session.pictures:
            raise ConfigError("choose a picture first")
        return self._write_caption(session, "the picture", model, settings)

    def _write_caption(self, session: Session, name: str, model: object, settings: Sequence) -> _Outputs:
        """Caption the session's picture, and offer its words where the model's attention can be shown."""
        served = self.exhibit.models.choose(model)
        decoding = decoding_of(served, *settings)
        upload = session.pictures["caption"]
        picture = read_picture(upload, name)
        session.looked = None

        with served.turn() as pipeline:
            # Only image tokens that are patches of the picture have a place in it.
            if not has_patches(pipeline.model):
                caption = pipeline.caption(picture, **decoding)
                # One picture, and no list of them, has one caption.
                assert isinstance(caption, str)
                return caption, _hidden_words(), _hidden_heat()
            looked = caption_and_look(pipeline, picture, decoding)

        # Offered by their numbers, as a word may come twice.
        session.looked = looked
        choices = [(word, number) for number, word in enumerate(looked.words)]
        words = gr.Radio(choices, value=None, visible=bool(choices))
        return looked.caption, words, _hidden_heat()

    def _look(self, request: gr.Request, word: object) -> gr.Image:
        """Return the heat map of a word of the last caption by its index; a hidden one if no word has the index."""
        session = self.exhibit.session(request)
        looked = session.looked
        # The index comes from the client, which may send anything.
        if looked is None or not isinstance(word, int):
            return _hidden_heat()
        if not 0 <= word < len(looked.maps):
            return _hidden_heat()

        upload = session.pictures["caption"]
        picture = read_picture(upload, "the picture")
        image = heat_map(picture, looked, word)
        label = f"Where “{looked.words[word]}” looked"
        return gr.Image(image, visible=True, label=label)


def _nothing() -> _Outputs:
    """Return the outputs of the tab before there is a caption."""
    return "", _hidden_words(), _hidden_heat()


def _hidden_words() -> gr.Radio:
    """Return an update that empties and hides the choice of words."""
    return gr.Radio([], value=None, visible=False)


def _hidden_heat() -> gr.Image:
    """Return an update that empties and hides the heat map."""
    return gr.Image(None, visible=False)
