"""Log the caption score CIDEr at validations, beside scores of the same model without the right pictures (controls).

The difference shows whether the model learns to see, or only to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from visllama.config.choices import choose
from visllama.console import say
from visllama.data.datamodule import TrainingData
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.prompts import CONTROLS, Prompts, prompts_of_records
from visllama.model.visllama import VisLlama
from visllama.training.lightning_parts import connected, run_module

_FIGURE = "val/CIDEr"


class ValCIDEr(Callback):
    """Log `val/CIDEr` at each validation, and `val/CIDEr/CONTROL` for each control, on CIDEr's own scale (1.13, say).

    A control is the same model with other pictures than the right ones. CIDEr counts its document frequencies in the
    references of these records alone, so that a score can be compared to others of the same run and of runs on the same
    records, but not to that of a whole test set. The ranks write the captions together, and the first one scores them.

    Args:
        num_images: The number of validation records of each source: the first that have captions and fit the model.
        controls: Names of controls, "shuffled_images" (each gets another record's) and "blank_images"; may be empty.
        decoding: Arguments of transformers' `generate`: num_beams, max_new_tokens, ...
        batch_size: The number of captions that are written at once.

    Raises:
        ConfigError: If a control is unknown; when the run starts, if nothing is validated; and at the first validation,
            if no validation record has captions.
    """

    def __init__(self, num_images: int, controls: Sequence[str], decoding: Mapping, batch_size: int) -> None:
        for control in controls:
            choose("callbacks.val_cider.controls", control, tuple(CONTROLS))

        self.num_images = num_images
        self.controls = tuple(controls)
        self.decoding = dict(decoding)
        self.batch_size = batch_size

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.limit_val_batches:
            raise ConfigError("callbacks=val_cider: trainer.val_check_interval=null validates nothing: give it a share")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = run_module(pl_module).model
        references, captions = self._caption(model, connected(trainer).datamodule)
        if not references:
            raise ConfigError(
                "callbacks=val_cider: no record that is validated has captions: leave it out, or add data with captions"
            )

        # All ranks need the scores: a callback that keeps or stops by a figure acts on each of them.
        own_scores = _score(references, captions) if trainer.is_global_zero else {}
        scores = trainer.strategy.broadcast(own_scores)
        for figure, score in scores.items():
            pl_module.log(figure, score, rank_zero_only=True)

        if trainer.is_global_zero:
            description = _describe(scores, len(references))
            say(f"step {trainer.global_step} of {trainer.max_steps}: {description}")

    def _caption(self, model: VisLlama, data: TrainingData) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
        """Write the captions of the validation records, with the right pictures and under each control.

        All ranks call it together.

        Returns:
            The reference captions of each record by its key; and by the logged figure's name, the caption of each
            record by its key.
        """
        controls_of_figures = self._controls_of_figures()
        references: dict[str, list[str]] = {}
        captions: dict[str, dict[str, str]] = {figure: {} for figure in controls_of_figures}
        for source, maker in data.makers.items():
            captioner = Captioner(maker, self.decoding, self.batch_size)
            records = self._records(data, model, source, captioner)

            # Records of two sources may have the same key.
            keys = [f"{source}/{record['key']}" for record in records]
            for key, record in zip(keys, records, strict=True):
                references[key] = record["captions"]

            prompts = prompts_of_records(records)
            for figure, control in controls_of_figures.items():
                shown_prompts = prompts if control is None else CONTROLS[control](prompts)
                texts = _write(captioner, model, shown_prompts)
                captions[figure].update(zip(keys, texts, strict=True))
        return references, captions

    def _controls_of_figures(self) -> dict[str, str | None]:
        """Return the name of the control behind each logged figure; None for `val/CIDEr`, with the right pictures."""
        controls: dict[str, str | None] = {_FIGURE: None}
        for control in self.controls:
            controls[f"{_FIGURE}/{control}"] = control

        return controls

    def _records(self, data: TrainingData, model: VisLlama, source: str, captioner: Captioner) -> list[dict]:
        """Return the first validation records of a source that have captions and fit the model's positions."""
        # `readable` decodes the pictures of every record that it passes, here of a whole source in vain.
        kinds = data.val.sources[source].kinds
        if kinds and "captions" not in kinds:
            return []

        readable = data.val.readable(source)
        captioned = (record for record in readable if "captions" in record)
        fitting = (record for record in captioned if captioner.has_room(model, record))
        return list(islice(fitting, self.num_images))


def _write(captioner: Captioner, model: VisLlama, prompts: Prompts) -> list[str]:
    """Return the model's text for each prompt, in their order; all ranks call it together."""
    batches = captioner.batches(model, prompts)
    return [written.text for batch in batches for written in batch]


def _score(references: Mapping[str, Sequence[str]], captions: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """Return the CIDEr of each set of captions by the set's name.

    Args:
        references: The reference captions of each picture, by its key.
        captions: For each set, its caption of each picture, by the same keys.
    """
    scorer = CaptionScorer(references)
    scores = {}
    for figure, texts in captions.items():
        result = scorer.score(texts, ("CIDEr",))
        scores[figure] = result.values["CIDEr"]
    return scores


def _describe(scores: Mapping[str, float], num_images: int) -> str:
    """Return a line of text with the scores times 100, as papers print them."""
    cider = 100 * scores[_FIGURE]
    line = f"CIDEr of {num_images} validation pictures {cider:.1f}"

    parts = []
    for figure, score in scores.items():
        if figure != _FIGURE:
            control = figure.removeprefix(f"{_FIGURE}/").replace("_", " ")
            parts.append(f"{control} {100 * score:.1f}")

    if not parts:
        return line
    controls = ", ".join(parts)
    return f"{line} ({controls})"
