"""Language models that see: `visllama.load(weights)` returns a pipeline that captions, answers and chats.

The programs that train, judge and release such models are `visllama VERB key=value ...`.
"""

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
