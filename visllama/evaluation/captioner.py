"""Let a model write on after records: captions of them, or answers to their questions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from visllama.console import is_first_rank
from visllama.data.collate import Collator
from visllama.data.record import images_of
from visllama.data.samples import SampleMaker
from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError
from visllama.files import replacing
from visllama.images.decode import open_image
from visllama.model.visllama import VisLlama

_GREEDY = {
    "do_sample": False, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}  # fmt: skip
_SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


def whole_decoding(maker: SampleMaker, decoding: Mapping) -> dict:
    """Return every setting that decides what is written: the given ones, and the value of each that is not given.

    Args:
        maker: Names the tokens that end a text, and the one that pads.
        decoding: As transformers' `generate` takes it: num_beams, max_new_tokens, ...
    """
    tokenizer = maker.tokenizer
    tokens = {
        "eos_token_id": sorted({maker.end_id, tokenizer.eos_token_id}),
        "pad_token_id": tokenizer.pad_token_id,
    }
    sampled = _SAMPLED if decoding.get("do_sample") else {}
    given = {name: value for name, value in decoding.items() if value is not None}
    return _GREEDY | sampled | tokens | given


def check_positions(num_positions: int | None, num_tokens: int, decoding: Mapping, where: str, remedy: str) -> None:
    """Refuse to write on after more tokens than leave room for the new ones.

    Args:
        num_positions: Most that the language model has; None is no bound.
        num_tokens: Read before the first new one.
        decoding: Its `max_new_tokens` is the room that is needed.
        where: What is read, at the head of the message.
        remedy: What to do, beside a lower max_new_tokens.

    Raises:
        ConfigError: With both numbers.
    """
    num_new = decoding.get("max_new_tokens") or 1
    if num_positions is not None and num_tokens + num_new > num_positions:
        raise ConfigError(
            f"{where}max_new_tokens={num_new} behind {num_tokens} tokens: the language model has {num_positions} "
            f"positions: lower it, {remedy}"
        )


class Captioner:
    """Generate what a record's last response would be: its caption, or the answer to its one question.

    Args:
        maker: Makes the prompts' Samples.
        decoding: As transformers' `generate` takes it: num_beams, max_new_tokens, ...
        batch_size: Images a batch; it changes speed, not text.

    Attributes:
        decoding: The whole of it; nothing of the base model's own `generation_config` adds to it.
    """

    def __init__(self, maker: SampleMaker, decoding: Mapping, batch_size: int) -> None:
        self.maker, self.batch_size = maker, batch_size
        self.decoding = whole_decoding(maker, decoding)
        self.collator = Collator(
            maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, batch_size
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.maker.tokenizer

    def check_room(self, model: VisLlama, records: Sequence[Mapping], where: str = "") -> None:
        """Refuse records whose prompt and new tokens do not fit the language model's positions; nothing is generated.

        Args:
            model: Whose positions are meant.
            records: To write on after.
            where: The config key that they come from, for the message.

        Raises:
            ConfigError: Naming the first such record.
        """
        for record in records:
            name = f"{where}record {record['key']}: "
            remedy = "shorten its text, or leave the record out"
            check_positions(model.num_positions, self.maker.prompt_length(record), self.decoding, name, remedy)

    def has_room(self, model: VisLlama, record: Mapping) -> bool:
        """Return whether a record's prompt and new tokens fit the language model's positions."""
        try:
            self.check_room(model, [record])
        except ConfigError:
            return False
        return True

    def batches(self, model: VisLlama, records: Sequence[Mapping]) -> Iterator[list[str]]:
        """Yield the texts of each batch of records, each in one line; all ranks share the work, and get all texts."""
        device = model.markers.device
        rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for start in range(0, len(records), self.batch_size * num_ranks):
            own = records[start + rank * self.batch_size :][: self.batch_size]
            # Sharded, a rank cannot generate alone: one that has nothing left does one that another has too.
            samples = [self.maker(record, answered=False) for record in own or records[-1:]]
            batch = {name: tensor.to(device) for name, tensor in self.collator.generation_batch(samples).items()}
            with torch.inference_mode():
                ids = model.generate(**batch, **self.decoding)
            texts = [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
            yield texts if num_ranks == 1 else _of_all_ranks(texts[: len(own)], num_ranks)

    def __call__(self, model: VisLlama, records: Sequence[Mapping]) -> list[str]:
        """Return the text of each record."""
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
        log: JSON lines, there once all are; None keeps none.
        progress: Shows where it is.
        name: Of the task there.
    """
    task = progress.add_task(name, total=len(records))
    texts: list[str] = []
    keeps_log = log is not None and is_first_rank()
    with replacing(log) if keeps_log else nullcontext(os.devnull) as path, open(path, "w", encoding="utf-8") as file:
        for batch in captioner.batches(model, records):
            for row, text in zip(rows[len(texts) :], batch, strict=False):
                file.write(json.dumps({**row, key: text}) + "\n")
            file.flush()
            texts += batch
            progress.update(task, completed=len(texts))
    return texts


def image_ids(records: Sequence[Mapping], name: str) -> list[int | str]:
    """Return each record's own id, by which its prediction is written; where it brings none, its key.

    Args:
        records: That are judged.
        name: Of the evaluation, for the message.

    Raises:
        ConfigError: If an id comes twice, naming the first five.
    """
    ids = [record.get("image_id", record["key"]) for record in records]
    counts = Counter(map(str, ids))
    doubled = [image_id for image_id, count in counts.items() if count > 1]
    if doubled:
        raise ConfigError(
            f"evaluation.{name}.source: {len(doubled)} image ids come more than once, first {', '.join(doubled[:5])}: "
            f"a prediction would not tell its image: prepare each image once, or judge a part of the tars"
        )
    return ids


def read_records(source: Source, name: str) -> list[dict]:
    """Read what is judged, every record of it: a score over fewer would not compare.

    Raises:
        ConfigError: If one cannot be read.
    """
    try:
        records = [source.read(i) for i in range(len(source))]
        for record in records:
            for image in images_of(record):
                open_image(image)
        return records
    except BadRecord as error:
        raise ConfigError(f"evaluation.{name}.source: a record cannot be read: {error}") from error
