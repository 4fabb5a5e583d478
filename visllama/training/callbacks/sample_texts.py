"""Print texts that the model writes at each validation, so that a person sees it learn; trackers get pictures too."""

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
from visllama.training.lightning_parts import connected, run_module

_MOST_PX = 384
"""The longer side of a picture that a tracker gets."""


class SampleTexts(Callback):
    """Print the texts that the model writes for a few validation records of each source, after each validation.

    Each line has the record's key, its question if it has one, the model's text and a reference. Without a
    terminal, only the first line is printed, and the other lines are written to the log. A tracker (as wandb) gets each
    text with a small picture.

    Args:
        captioners: The captioner of each source, by the source's name.
        num_records: The number of records of each source: the first that can be read and that fit the model.
    """

    def __init__(self, captioners: Mapping[str, Captioner], num_records: int = 3) -> None:
        self.captioners = captioners
        self.num_records = num_records

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = run_module(pl_module).model
        validation = connected(trainer).datamodule.val

        pictures = []
        # Every rank generates, though one prints: under sharding all of them are needed.
        for name, captioner in self.captioners.items():
            readable = validation.readable(name)
            fitting = (record for record in readable if captioner.has_room(model, record))
            records = list(islice(fitting, self.num_records))
            captions = captioner(model, records)
            for record, caption in zip(records, captions, strict=True):
                pictures.append(_picture(name, record, caption))

        if not trainer.is_global_zero:
            return

        loss = float(trainer.callback_metrics["val/loss"])
        seconds = time.perf_counter() - STARTED
        head = f"step {trainer.global_step} of {trainer.max_steps}, after {seconds:.0f} s: validation loss {loss:.3f}"
        lines = [_line(picture) for picture in pictures]
        # In a file that the output goes to, one is enough: the log has all.
        num_printed = len(lines) if is_terminal() else 1
        say(head, *lines[:num_printed])
        for line in lines[num_printed:]:
            log(line)

        # Figures of this validation are logged by the number of its step from 0.
        log_pictures(trainer.loggers, pictures, trainer.global_step - 1)


def _picture(source: str, record: Mapping, caption: str) -> Picture:
    """Return what a tracker gets of a record: its picture made small, its question, a reference, and the model's text.

    Args:
        source: The name of the record's source.
        record: The record.
        caption: The text that the model has written.
    """
    *earlier_turns, reference = turns_of(record, 0, "", "", 0)
    question = earlier_turns[-1].text if earlier_turns else ""
    thumbnail = _thumbnail(record)
    return Picture(source, record["key"], thumbnail, question, caption, reference.text)


def _line(picture: Picture) -> str:
    """Return the line that is printed of a picture."""
    question = f"{picture.prompt} ".lstrip()
    return f"  {picture.key}: {question}{picture.text}   (a reference: {picture.reference})"


def _thumbnail(record: Mapping) -> Image.Image | None:
    """Return a copy of a record's first picture of at most `_MOST_PX` a side; None if the record has no picture."""
    for picture in images_of(record):
        image = open_image(picture).copy()
        image.thumbnail((_MOST_PX, _MOST_PX))
        return image
    return None
