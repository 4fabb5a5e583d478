"""Build the callbacks of a run, ours and the user's, in the order in which Lightning has to call them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from visllama.config.command import words_to_go_on
from visllama.config.instantiate import build
from visllama.config.plain import to_yaml
from visllama.config.schema import TrainConfig
from visllama.evaluation.captioner import Captioner
from visllama.machine.devices import find_precision
from visllama.model.shapes import Shapes
from visllama.training.callbacks.bad_records import BadRecords
from visllama.training.callbacks.consumed import ConsumedKeys
from visllama.training.callbacks.curves import Curves
from visllama.training.callbacks.guard import NonFinite
from visllama.training.callbacks.hang import HangWatch
from visllama.training.callbacks.last_validation import LastValidation
from visllama.training.callbacks.progress import StepProgress
from visllama.training.callbacks.proofs import FrozenWeights, SameEverywhere
from visllama.training.callbacks.sample_texts import SampleTexts
from visllama.training.callbacks.saving import Saving
from visllama.training.callbacks.tables import StartupTable
from visllama.training.callbacks.throughput import Throughput


def build_callbacks(
    config: TrainConfig, folder: Path, captioners: Mapping[str, Captioner], shapes: Shapes | None = None
) -> list[Callback]:
    """Build a run's callbacks, those of the config's `callbacks` group among them, in the order of their calls.

    Args:
        config: The configuration of the run.
        folder: The run's folder, into which some of them write.
        captioners: The captioner of each source, by the source's name, which writes the samples shown at validation.
        shapes: Sizes of the model, from which floating-point operations are counted; None logs no such figures.
    """
    trainer = config.trainer
    precision = find_precision(trainer.precision, trainer.accelerator)
    callbacks: list[Callback] = [
        SameEverywhere(to_yaml(config)),
        HangWatch(folder, trainer.timeout_s),
        StartupTable(config, folder),
        BadRecords(config.data.max_bad_fraction, config.data.max_consecutive_bad),
        # Before the progress, which shows what it has logged.
        Throughput(shapes, precision),
        StepProgress(),
        SampleTexts(captioners),
        FrozenWeights(),
        NonFinite(trainer.max_skipped_steps, config.optim["lr"]),
        Curves(folder / "curves.png"),
        LastValidation(),
    ]
    if config.data.log_consumed:
        callbacks.append(ConsumedKeys(folder / "consumed.jsonl"))
    for node in config.callbacks.values():
        callbacks.append(build(node, config.plugins))

    # Last, because a checkpoint holds what the others have counted.
    next_command = shlex.join(["visllama", "train", *words_to_go_on(folder)])
    callbacks.append(Saving(folder, trainer.checkpoint_every_steps, trainer.keep_checkpoints, next_command))
    return callbacks
