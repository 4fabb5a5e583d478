"""The state that the tabs of the page share: models, examples, uploads, and the session of each visitor."""

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
    """Return the path of an example's file, which lies beside the folder of uploads and is not deleted with them."""
    return uploads.parent / f"example_{index}.png"


@dataclass(frozen=True)
class Exhibit:
    """The state that the tabs of the page share.

    Attributes:
        models: The models.
        examples: Example pictures for a visitor to click.
        uploads: The folder in which gradio keeps uploads.
        max_bytes: The largest size of a file, in bytes.
        sessions: The sessions of all visitors.
    """

    models: Shelf
    examples: Sequence[Image.Image]
    uploads: Path
    max_bytes: int
    sessions: Sessions = field(default_factory=Sessions)

    def session(self, request: gr.Request) -> Session:
        """Return a visitor's session."""
        return self.sessions.find(request.session_hash)

    def forget(self, request: gr.Request) -> None:
        """Forget a visitor who has left."""
        self.sessions.forget(request.session_hash)

    def read_upload(self, file: object) -> tuple[bytes, str]:
        """Return the content and the name of an uploaded file; see `pictures.read_upload`."""
        return read_upload(file, self.uploads, self.max_bytes)

    def model_line(self) -> dict[str, Any]:
        """Return the options of an event that needs a model: all wait in one queue, with a place for each model."""
        return {"concurrency_id": "models", "concurrency_limit": len(self.models.names)}

    def model_choice(self) -> gr.Dropdown:
        """Return the control that chooses a model; it is hidden where there is only one."""
        names = self.models.names
        return gr.Dropdown(names, value=names[0], label="Weights", visible=len(names) > 1)

    def settings(self) -> Settings:
        """Return the controls of how a text is generated."""
        num_new_tokens = self.models.choose().decoding.get("max_new_tokens") or 40
        # The slider ends at 256.
        return settings_of(min(256, num_new_tokens))

    def example_row(self) -> gr.Gallery | None:
        """Return the examples as a row to be clicked; None where there are none."""
        if not self.examples:
            return None

        return gr.Gallery(
            [(picture, f"Example {number}") for number, picture in enumerate(self.examples, 1)],
            label="Examples",
            columns=6,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            format="png",
            elem_classes="examples",
        )

    def example(self, event: gr.SelectData) -> Image.Image:
        """Return the example that was clicked."""
        return self.examples[self._clicked(event)]

    def example_file(self, event: gr.SelectData) -> Path:
        """Return the file of the example that was clicked."""
        return example_path(self.uploads, self._clicked(event))

    def _clicked(self, event: gr.SelectData) -> int:
        """Return the index of the example that was clicked; 0 for an index that no example has."""
        index = event.index
        if isinstance(index, int) and 0 <= index < len(self.examples):
            return index
        return 0
