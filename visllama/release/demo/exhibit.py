"""What the tabs of the page work with: models, examples, uploads, and what is remembered of each visitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from visllama.release.demo.controls import Settings, settings_of
from visllama.release.demo.pictures import read_upload
from visllama.release.demo.served import Shelf
from visllama.release.demo.sessions import Session, Sessions


def example_path(uploads: Path, index: int) -> Path:
    """Return where an example's file lies: beside the folder of uploads."""
    return uploads.parent / f"example_{index}.png"


@dataclass(frozen=True)
class Exhibit:
    """What the tabs of the page work with.

    Attributes:
        models: The models.
        examples: Pictures that are ready to be clicked.
        uploads: The folder that gradio keeps uploads in.
        max_bytes: The largest size of a file.
        sessions: What is remembered of each visitor.
    """

    models: Shelf
    examples: Sequence[Image.Image]
    uploads: Path
    max_bytes: int
    sessions: Sessions = field(default_factory=Sessions)

    def session(self, request: gr.Request) -> Session:
        """Return what is remembered of a visitor."""
        return self.sessions.find(request.session_hash)

    def forget(self, request: gr.Request) -> None:
        """Forget a visitor who has left."""
        self.sessions.forget(request.session_hash)

    def read_upload(self, file: object) -> tuple[bytes, str]:
        """Return the content and the name of an uploaded file; see `pictures.read_upload`."""
        return read_upload(file, self.uploads, self.max_bytes)

    def model_line(self) -> dict[str, Any]:
        """Return the options of an event that needs a model: all wait in one line, for as many places as models."""
        return {"concurrency_id": "models", "concurrency_limit": len(self.models.names)}

    def model_choice(self) -> gr.Dropdown:
        """Return what a visitor chooses a model by; it is not shown where there is one alone."""
        names = self.models.names
        return gr.Dropdown(names, value=names[0], label="Weights", visible=len(names) > 1)

    def settings(self) -> Settings:
        """Return the controls of how a text is written."""
        return settings_of(min(256, self.models.choose().decoding.get("max_new_tokens") or 40))

    def example_row(self) -> gr.Gallery | None:
        """Return the examples as a row to be clicked; None where there are none."""
        if not self.examples:
            return None
        return gr.Gallery(
            [(picture, f"Example {number}") for number, picture in enumerate(self.examples, 1)],
            label="Examples", columns=6, height="auto", object_fit="contain", allow_preview=False, interactive=False,
            buttons=[], format="png", elem_classes="examples",
        )  # fmt: skip

    def example(self, event: gr.SelectData) -> Image.Image:
        """Return the example that was clicked."""
        return self.examples[self._clicked(event)]

    def example_file(self, event: gr.SelectData) -> Path:
        """Return the file of the example that was clicked."""
        return example_path(self.uploads, self._clicked(event))

    def _clicked(self, event: gr.SelectData) -> int:
        is_there = isinstance(event.index, int) and 0 <= event.index < len(self.examples)
        return event.index if is_there else 0
