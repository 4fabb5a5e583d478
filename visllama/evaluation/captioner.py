"""Let a model write on after records: captions of them, or answers to their questions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from visllama.config import ConfigError
from visllama.console import is_first_rank
from visllama.data.collate import Collator
from visllama.data.faults import BadRecord
from visllama.data.images import open_image
from visllama.data.samples import SampleMaker, images_of
from visllama.data.sources import Source
from visllama.model.visllama import VisLlama


class Captioner:
    """Generate what a record's last response would be: its caption, or the answer to its one question.

    Args:
        maker: Makes the prompts' Samples.
        decoding: As transformers' `generate` takes it: num_beams, max_new_tokens, ...
        batch_size: Images a batch; it changes speed, not text.
    """

    def __init__(self, maker: SampleMaker, decoding: Mapping, batch_size: int) -> None:
        self.maker, self.decoding, self.batch_size = maker, dict(decoding), batch_size
        self.collator = Collator(
            maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, batch_size
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.maker.tokenizer

    def batches(self, model: VisLlama, records: Sequence[Mapping]) -> Iterator[list[str]]:
        """Yield the texts of each batch of records, each in one line; all ranks share the work, and get all texts."""
        device = model.markers.device
        settings = {
            "do_sample": False,
            "eos_token_id": sorted({self.maker.end_id, self.tokenizer.eos_token_id}),
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for start in range(0, len(records), self.batch_size * num_ranks):
            own = records[start + rank * self.batch_size :][: self.batch_size]
            # Sharded, a rank cannot generate alone: one that has nothing left does one that another has too.
            samples = [self.maker(record, answered=False) for record in own or records[-1:]]
            batch = {name: tensor.to(device) for name, tensor in self.collator.generation_batch(samples).items()}
            with torch.inference_mode():
                ids = model.generate(**batch, **(settings | self.decoding))
            texts = [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
            yield texts if num_ranks == 1 else _of_all_ranks(texts[: len(own)], num_ranks)

    def __call__(self, model: VisLlama, records: Sequence[Mapping]) -> list[str]:
        """Give the text of each record."""
        return [text for texts in self.batches(model, records) for text in texts]


def _of_all_ranks(texts: list[str], num_ranks: int) -> list[str]:
    gathered: list = [None] * num_ranks
    dist.all_gather_object(gathered, texts)
    return [text for of_rank in gathered for text in of_rank]


def write_texts(
    model: VisLlama, captioner: Captioner, records: Sequence[Mapping], rows: Sequence[Mapping], key: str,
    log: Path | None, progress: Progress, name: str,
) -> list[str]:  # fmt: skip
    """Generate with a progress bar, and log each batch as it comes.

    Args:
        model: With all its weights.
        captioner: Generates.
        records: To write on after.
        rows: What the log says of each record beside its text.
        key: By which the text goes there.
        log: JSON lines; None keeps none.
        progress: Shows where it is.
        name: Of the task there.
    """
    task = progress.add_task(name, total=len(records))
    texts: list[str] = []
    with open(log if log and is_first_rank() else os.devnull, "w", encoding="utf-8") as file:
        for batch in captioner.batches(model, records):
            for row, text in zip(rows[len(texts) :], batch, strict=False):
                file.write(json.dumps({**row, key: text}) + "\n")
            file.flush()
            texts += batch
            progress.update(task, completed=len(texts))
    return texts


def read_records(source: Source, name: str) -> list[dict]:
    """Read what is judged, every record of it: a score over fewer would not compare.

    Raises:
        ConfigError: If one cannot be read.
    """
    try:
        records = [source[i] for i in range(len(source))]
        for record in records:
            for image in images_of(record):
                open_image(image)
        return records
    except BadRecord as error:
        raise ConfigError(f"evaluation.{name}.source: a record cannot be read: {error}") from error
