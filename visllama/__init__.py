"""Give a LLaMA eyes: `visllama.load(weights)` captions, answers and chats; the programs are `visllama VERB`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visllama.inference.pipeline import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Return `load`, imported when it is first asked for (PEP 562): torch and transformers take seconds."""
    if name != "load":
        raise AttributeError(f"module 'visllama' has no attribute {name!r}")
    from visllama.inference.pipeline import load

    return load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
