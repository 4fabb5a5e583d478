"""Texts that the model writes on the way, so that a person sees it learn; the trackers get their pictures too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from PIL import Image

from visllama.console import STARTED, is_terminal, log, say
from visllama.data.record import images_of
from visllama.data.turns import turns_of
from visllama.evaluation.captioner import Captioner
from visllama.images.decode import open_image
from visllama.tracking.loggers import log_pictures
from visllama.tracking.tracker import Picture

_MOST_PX = 384


class SampleTexts(Callback):
    """Show what the model says to a few validation records of each source, at each validation."""

    def __init__(self, captioners: Mapping[str, Captioner], num_records: int = 3) -> None:
        self.captioners, self.num_records = captioners, num_records

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Every rank generates, though one prints: under sharding all of them are needed.
        lines, pictures = [], []
        for name, captioner in self.captioners.items():
            readable = trainer.datamodule.val.readable(name)
            fitting = (record for record in readable if captioner.has_room(module.model, record))
            records = list(islice(fitting, self.num_records))
            for record, said in zip(records, captioner(module.model, records), strict=True):
                *asked, reference = turns_of(record, 0, "", "", 0)
                question = asked[-1].text if asked else ""
                lines.append(f"  {record['key']}: {f'{question} '.lstrip()}{said}   (a reference: {reference.text})")
                pictures.append(Picture(name, record["key"], _thumbnail(record), question, said, reference.text))
        if trainer.is_global_zero:
            loss = float(trainer.callback_metrics["val/loss"])
            after = f"after {time.perf_counter() - STARTED:.0f} s"
            shown = lines if is_terminal() else lines[:1]  # of a file one is enough: the log has all
            say(f"step {trainer.global_step} of {trainer.max_steps}, {after}: validation loss {loss:.3f}", *shown)
            for line in lines[len(shown) :]:
                log(line)
            # Figures of this validation are logged by the number of its step from 0.
            log_pictures(trainer.loggers, pictures, trainer.global_step - 1)


def _thumbnail(record: Mapping) -> Image.Image | None:
    """Return a record's first picture, small enough to be kept at each validation; None where it has none."""
    for picture in images_of(record):
        image = open_image(picture).copy()
        image.thumbnail((_MOST_PX, _MOST_PX))
        return image
    return None
