"""Galleries of records that are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.prompts import prompts_of_records


def write_gallery_of(
    path: Path, title: str, records: Sequence[Mapping], texts: Sequence[str], scores: Sequence[float],
    metric: str = "CIDEr", **more,
) -> None:  # fmt: skip
    """Write the gallery of records with one score each."""
    write_gallery(path, title, prompts_of_records(records), Shown(texts, {metric: scores}), **more)
