"""How tests judge."""

from __future__ import annotations

from visllama.evaluation.runner import JudgeSettings

SETTINGS = JudgeSettings(
    accelerator="cpu", precision="32-true", num_threads=1, decoding={"max_new_tokens": 12}, plugins=(), models="models"
)
