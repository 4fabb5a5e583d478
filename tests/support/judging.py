"""How tests judge."""

from __future__ import annotations

from dataclasses import asdict

from visllama.config.schema import EvaluationSettings
from visllama.evaluation.runner import JudgeSettings

SETTINGS = JudgeSettings(
    accelerator="cpu", precision="32-true", num_threads=1, decoding={"max_new_tokens": 12}, plugins=(), models="models"
)


def evaluation(**settings) -> dict:
    """Return an evaluation's configuration, with the schema's value of each key that is not given."""
    return asdict(EvaluationSettings(**settings))
