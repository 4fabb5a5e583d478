"""Hold the state that the tabs of the page share: models, examples, uploads, and the session of each open page."""

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
    """Return the path of an example's PNG file, which lies beside the folder of uploads; nothing is written.

    gradio deletes old uploads while the server runs, but no file beside their folder.

    Args:
        uploads: The folder of uploads.
        index: The index of the example, from 0 on.
    """
    return uploads.parent / f"example_{index}.png"


@dataclass(frozen=True)
class Exhibit:
    """The state that the tabs of the page share, and the controls that are built from it.

    Attributes:
        models: The models that a visitor may use.
        examples: Example pictures for a visitor to click; may be empty.
        uploads: The folder in which gradio keeps uploaded files.
        max_bytes: The largest size of an uploaded file, in bytes.
        sessions: The memory of all open pages.
    """

    models: Shelf
    examples: Sequence[Image.Image]
    uploads: Path
    max_bytes: int
    sessions: Sessions = field(default_factory=Sessions)

    def session(self, request: gr.Request) -> Session:
        """Return the memory of the page that sent a request; a page without one gets a new one."""
        return self.sessions.find(request.session_hash)

    def forget(self, request: gr.Request) -> None:
        """Delete the memory of the page that sent a request, when it is closed."""
        self.sessions.forget(request.session_hash)

    def read_upload(self, file: object) -> tuple[bytes, str]:
        """Return the content of an uploaded file, and the name of the visitor's file or, if unknown, of the upload.

        Args:
            file: The page's description of the file, a dict with `path` and `orig_name`, or the path alone. It comes
                from the client, and may be anything.

        Raises:
            ConfigError: If the file is not in the folder of uploads, is no longer there, or is larger than `max_bytes`.
        """
        return read_upload(file, self.uploads, self.max_bytes)

    def model_line(self) -> dict[str, Any]:
        """Return the options of gradio for an event that runs a model.

        All such events wait in one queue, from which as many run at once as there are models.
        """
        return {"concurrency_id": "models", "concurrency_limit": len(self.models.names)}

    def model_choice(self) -> gr.Dropdown:
        """Build the control that chooses a model by its name, and add it to the page; with one model it is hidden."""
        names = self.models.names

        return gr.Dropdown(names, value=names[0], label="Weights", visible=len(names) > 1)

    def settings(self) -> Settings:
        """Build the controls of how a text is generated, and add them to the page.

        They begin with the first model's own number of new tokens (at most 256), or with 40 if it has none.
        """
        num_new_tokens = self.models.choose().decoding.get("max_new_tokens") or 40

        # The slider ends at 256.
        return settings_of(min(256, num_new_tokens))

    def example_row(self) -> gr.Gallery | None:
        """Build a row of the example pictures, and add it to the page; without examples, return None."""
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
        """Return the example picture that a visitor clicked in the row of examples.

        If the event names no example, the result is the first one; there has to be at least one.
        """
        return self.examples[self._clicked(event)]

    def example_file(self, event: gr.SelectData) -> Path:
        """Return the path of the PNG file of the example that a visitor clicked in the row of examples.

        If the event names no example, the result is the path of the first one's file.
        """
        return example_path(self.uploads, self._clicked(event))

    def _clicked(self, event: gr.SelectData) -> int:
        """Return the index of the example that was clicked; 0 for an index that no example has."""
        # The index comes from the client, which may send anything.
        index = event.index
        if isinstance(index, int) and 0 <= index < len(self.examples):
            return index
        return 0
