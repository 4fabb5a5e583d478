"""Give a LLaMA eyes: `visllama.load(weights)` captions, answers and chats; the programs are `visllama VERB`."""

from __future__ import annotations

from typing import Any


def load(weights: Any, plugins: Any = (), **options: Any) -> Any:
    """Load a run's `weights/` to use them; see `visllama.inference.pipeline.load`."""
    from visllama.inference.pipeline import load as load_pipeline  # here: torch and transformers take seconds to import

    return load_pipeline(weights, plugins, **options)
