"""Find a pretrained model by its path: a folder, a hub id, or one of the two that ship with the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "scenes" / "pretrained"
_SHIPPED_PREFIX = "visllama:"


def locate(path: str) -> str:
    """Give what transformers' `from_pretrained` takes; `visllama:NAME` is a backbone of the embedded world."""
    if path.startswith(_SHIPPED_PREFIX):
        return str(SHIPPED / path.removeprefix(_SHIPPED_PREFIX))
    return path


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' loading reports and progress bars off the terminal; errors still raise."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
