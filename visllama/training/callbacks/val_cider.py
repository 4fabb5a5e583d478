"""CIDEr at validations, beside that of the same model without sight: does it learn to see, or only to speak?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from visllama.config.choices import choose
from visllama.console import say
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.prompts import CONTROLS, Prompts, prompts_of_records

_FIGURE = "val/CIDEr"


class ValCIDEr(Callback):
    """Log `val/CIDEr` at each validation, and `val/CIDEr/CONTROL` of each control, on CIDEr's own scale (1.13).

    The pictures are the one corpus in which CIDEr counts its document frequencies: a figure compares to those of the
    same run and of runs on the same pictures, and not to that of a whole test set. The ranks write the captions
    together, and the first one scores them.

    Args:
        num_images: How many pictures of each source are captioned: its first ones that have captions.
        controls: Of `shuffled_images` and `blank_images`.
        decoding: As transformers' `generate` takes it: num_beams, max_new_tokens, ...
        batch_size: How many captions are written at once.

    Raises:
        ConfigError: If a control is unknown, nothing is validated, or no record that is validated has captions.
    """

    def __init__(self, num_images: int, controls: Sequence[str], decoding: Mapping, batch_size: int) -> None:
        for control in controls:
            choose("callbacks.val_cider.controls", control, tuple(CONTROLS))
        self.num_images = num_images
        self.controls = tuple(controls)
        self.decoding = dict(decoding)
        self.batch_size = batch_size

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not trainer.limit_val_batches:
            raise ConfigError("callbacks=val_cider: trainer.val_check_interval=null validates nothing: give it a share")

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        references: dict[str, list[str]] = {}
        captions: dict[str, dict[str, str]] = {figure: {} for figure in self._controls_of_figures()}
        for source, maker in trainer.datamodule.makers.items():
            captioner = Captioner(maker, self.decoding, self.batch_size)
            records = self._records(trainer, module, source, captioner)
            keys = [f"{source}/{record['key']}" for record in records]
            references.update(zip(keys, (record["captions"] for record in records), strict=True))
            prompts = prompts_of_records(records)
            for figure, control in self._controls_of_figures().items():
                shown = prompts if control is None else CONTROLS[control](prompts)
                captions[figure].update(zip(keys, _write(captioner, module, shown), strict=True))
        if not references:
            raise ConfigError(
                "callbacks=val_cider: no record that is validated has captions: leave it out, or add data with captions"
            )

        scores = _score(references, captions) if trainer.is_global_zero else None
        scores = trainer.strategy.broadcast(scores)
        for figure, score in scores.items():
            module.log(figure, score, rank_zero_only=True)
        if trainer.is_global_zero:
            say(f"step {trainer.global_step} of {trainer.max_steps}: {_told(scores, len(references))}")

    def _controls_of_figures(self) -> dict[str, str | None]:
        """Return the name of each figure, with its control; None is the model with the right pictures."""
        return {_FIGURE: None, **{f"{_FIGURE}/{control}": control for control in self.controls}}

    def _records(
        self, trainer: pl.Trainer, module: pl.LightningModule, source: str, captioner: Captioner
    ) -> list[dict]:
        """Return the first validation records of a source that are to be captioned."""
        readable = trainer.datamodule.val.readable(source)
        captioned = (record for record in readable if "captions" in record)
        fitting = (record for record in captioned if captioner.has_room(module.model, record))
        return list(islice(fitting, self.num_images))


def _write(captioner: Captioner, module: pl.LightningModule, prompts: Prompts) -> list[str]:
    return [written.text for batch in captioner.batches(module.model, prompts) for written in batch]


def _score(references: Mapping[str, Sequence[str]], captions: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """Return the CIDEr of several captionings of the same pictures, by the name of each."""
    scorer = CaptionScorer(references)
    return {figure: scorer.score(texts, ("CIDEr",)).values["CIDEr"] for figure, texts in captions.items()}


def _told(scores: Mapping[str, float], num_images: int) -> str:
    """Return a line that tells figures as papers print them, x100."""
    blind = [f"{name.rpartition('/')[2].replace('_', ' ')} {100 * score:.1f}" for name, score in scores.items()][1:]
    beside = f" ({', '.join(blind)})" if blind else ""
    return f"CIDEr of {num_images} validation pictures {100 * scores[_FIGURE]:.1f}{beside}"
