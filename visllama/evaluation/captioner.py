"""Generate the texts that follow prompts: captions of pictures, or answers to questions about them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visllama.data.collate import Batch, Collator
from visllama.data.samples import SampleMaker
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.prediction_log import Written
from visllama.evaluation.prompts import Prompts, prompts_of_records
from visllama.model.visllama import VisLlama

# Every setting that changes a text is passed to `generate`, so that no default of a base model's own
# `generation_config` gets in.
_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


def whole_decoding(maker: SampleMaker, decoding: Mapping) -> dict:
    """Return all arguments of transformers' `generate` that decide a text, the given ones filled up with defaults.

    The defaults are greedy decoding without penalties, the end tokens of the tokenizer and of the template, and the
    tokenizer's padding token. `max_new_tokens` has no default here.

    Args:
        maker: The `SampleMaker` of the model, which knows the end tokens and the padding token.
        decoding: Arguments of `generate`: num_beams, max_new_tokens, ... A value of None stands for the default.

    Returns:
        A new mapping; `decoding` is not changed.
    """
    tokenizer = maker.tokenizer
    tokens = {
        "eos_token_id": sorted({maker.end_id, tokenizer.eos_token_id}),
        "pad_token_id": tokenizer.pad_token_id,
    }
    sampled = _SAMPLED if decoding.get("do_sample") else {}
    configured = {name: value for name, value in decoding.items() if value is not None}
    return {**_GREEDY, **sampled, **tokens, **configured}


def check_positions(num_positions: int | None, num_tokens: int, decoding: Mapping, where: str, remedy: str) -> None:
    """Check that a prompt and the tokens to be generated fit the language model's positions.

    Args:
        num_positions: The number of positions of the language model; None means that there is no bound.
        num_tokens: The number of tokens of the prompt, those of its images included.
        decoding: The arguments of `generate`, of which `max_new_tokens` counts; without it, one new token has to fit.
        where: The name of the prompt with ": " behind it, as the beginning of the message.
        remedy: What the user can do besides lowering max_new_tokens, as the end of the message.

    Raises:
        ConfigError: If prompt and new tokens together are more than the positions; the message holds the numbers.
    """
    if num_positions is None:
        return

    num_new = decoding.get("max_new_tokens") or 1
    if num_tokens + num_new > num_positions:
        raise ConfigError(
            f"{where}max_new_tokens={num_new} behind {num_tokens} tokens: the language model has {num_positions} "
            f"positions: lower it, {remedy}"
        )


class Captioner:
    """Generate a text for each prompt: a caption, the answer to its question, or the last turn of its conversation.

    A captioner holds no model: each method is given one.

    Args:
        maker: The `SampleMaker` of the model, as `sample_maker` returns it, which tokenises prompts and decodes
            pictures.
        decoding: Arguments of transformers' `generate`: num_beams, max_new_tokens, ... `whole_decoding` fills up what
            is missing.
        batch_size: The largest number of prompts in a batch. It is a matter of speed, unless the decoding samples:
            which tokens are drawn depends on the batch.
        seed: The seed of the tokens that are drawn if the decoding samples; None draws from torch's generator as it
            stands.

    Attributes:
        maker: The `SampleMaker` of the model.
        batch_size: The largest number of prompts in a batch.
        decoding: All arguments of `generate`; the base model's own `generation_config` adds nothing to them.
        collator: The collator that pads prompts and stacks pictures.
    """

    def __init__(self, maker: SampleMaker, decoding: Mapping, batch_size: int, seed: int | None = None) -> None:
        self.maker = maker
        self.batch_size = batch_size
        self.decoding = whole_decoding(maker, decoding)
        self.collator = Collator(
            maker.tokenizer.pad_token_id,
            maker.num_image_tokens,
            maker.transform.size_px,
            batch_size,
        )
        self._seed = seed
        self._stop_strings = _as_list(self.decoding.get("stop_strings"))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's tokenizer."""
        return self.maker.tokenizer

    def check_room(self, model: VisLlama, prompts: Prompts | Sequence[Mapping], where: str = "") -> None:
        """Check that each prompt and its new tokens fit the model's positions; nothing is generated.

        No picture is read. All prompts are tokenised, unless the model has no bound.

        Args:
            model: The model whose positions the prompts have to fit.
            prompts: The prompts, or records in memory as `prompts_of_records` takes them.
            where: The config key that the prompts come from, with ": " behind it, as the beginning of the message.

        Raises:
            ConfigError: If a prompt does not fit; the message names the record of the first such prompt.
        """
        # Tokenising every prompt takes a while.
        if model.num_positions is None:
            return

        remedy = "shorten its text, or leave the record out"
        for prompt in _as_prompts(prompts):
            name = f"{where}record {prompt.record['key']}: "
            ids = self.maker.prompt_ids(prompt.record, prompt.num_images)
            check_positions(model.num_positions, len(ids), self.decoding, name, remedy)

    def has_room(self, model: VisLlama, record: Mapping) -> bool:
        """Return whether the prompt of a record and its new tokens fit the model's positions; nothing is generated.

        Args:
            model: The model whose positions the prompt has to fit.
            record: A record in memory, as `prompts_of_records` takes it.
        """
        try:
            self.check_room(model, [record])
        except ConfigError:
            return False
        return True

    def batches(self, model: VisLlama, prompts: Prompts, first: int = 0) -> Iterator[list[Written]]:
        """Generate the texts of prompts, and yield them in the order of the prompts, batch by batch.

        If there are several ranks (processes that share the work), all of them have to iterate. A list then holds the
        texts of one batch of every rank, and every rank gets all texts.

        Args:
            model: A model with all its weights.
            prompts: The prompts.
            first: The number of the prompt to begin with, from 0; earlier prompts are left out.

        Yields:
            A list with the text of each of the next prompts, its number of tokens, and whether it was cut off.

        Raises:
            ConfigError: If a picture cannot be decoded.
        """
        rank = 0
        num_ranks = 1
        if dist.is_initialized():
            rank = dist.get_rank()
            num_ranks = dist.get_world_size()

        batches = prompts.batches(self.batch_size, first)
        for start in range(0, len(batches), num_ranks):
            of_ranks = batches[start : start + num_ranks]
            # A rank of a sharded model cannot generate alone, since all ranks hold parts of it. In the last round a
            # rank that has no batch of its own therefore generates another's again, and drops the texts.
            has_batch = rank < len(of_ranks)
            written = self._write(model, prompts, of_ranks[rank] if has_batch else of_ranks[-1])
            if num_ranks > 1:
                written = _of_all_ranks(written if has_batch else [], num_ranks)
            yield written

    def __call__(self, model: VisLlama, records: Sequence[Mapping]) -> list[str]:
        """Generate a text for each record, and return the texts in the order of the records.

        Args:
            model: A model with all its weights.
            records: Records in memory, as `prompts_of_records` takes them: each with a `key` and, if it shows
                pictures, `image` or `images`.

        Raises:
            ConfigError: If a picture cannot be decoded.
        """
        prompts = prompts_of_records(records)
        texts = []
        for batch in self.batches(model, prompts):
            texts.extend(written.text for written in batch)
        return texts

    def _write(self, model: VisLlama, prompts: Prompts, numbers: range) -> list[Written]:
        """Return the texts of the prompts of one batch."""
        device = model.markers.device
        batch, image_of_span = self._read_batch(prompts, numbers, device)

        settings = dict(self.decoding)
        if self._stop_strings:
            # transformers matches stop strings against tokens, for which it needs the tokenizer.
            settings["tokenizer"] = self.tokenizer

        with torch.inference_mode(), self._seeded(numbers.start, device):
            ids = model.generate(**batch, image_of_span=image_of_span, **settings)
        return [self._read(row) for row in ids]

    # A method of its own, so that the pictures in the memory of the CPU are freed before the model generates.
    def _read_batch(
        self,
        prompts: Prompts,
        numbers: range,
        device: torch.device,
    ) -> tuple[Batch, Int[Tensor, " S"] | None]:
        """Return the padded ids and the pictures of a batch of prompts, on a device.

        Returns:
            The batch, and for each place of a picture in its prompts the number of the picture in the batch; None if
            the prompts show no picture.
        """
        rows = []
        for number in numbers:
            prompt = prompts[number]
            rows.append(self.maker.prompt_ids(prompt.record, prompt.num_images))
        padded = self.collator.pad_left(rows)
        images, places = self._decode(prompts, numbers)
        pixel_values = self.collator.stack_images(images)

        batch = Batch(
            input_ids=padded["input_ids"].to(device),
            attention_mask=padded["attention_mask"].to(device),
            pixel_values=pixel_values.to(device),
        )
        image_of_span = torch.tensor(places).to(device) if places else None
        return batch, image_of_span

    def _decode(self, prompts: Prompts, numbers: range) -> tuple[list[UInt8[Tensor, "3 H W"]], list[int]]:
        """Decode each picture of a batch once.

        Returns:
            The pictures, and for each place of a picture in the batch's prompts, in reading order, the number of the
            picture in the first list.
        """
        images: list[UInt8[Tensor, "3 H W"]] = []
        images_of_record: dict[int, list[int]] = {}
        image_of_span: list[int] = []
        for number in numbers:
            prompt = prompts[number]
            if prompt.shown is None:
                continue

            # Several questions of a batch may be about one picture.
            if prompt.shown not in images_of_record:
                decoded = self._transform(prompts, number)
                first = len(images)
                images += decoded
                images_of_record[prompt.shown] = list(range(first, len(images)))
            image_of_span += images_of_record[prompt.shown]
        return images, image_of_span

    def _transform(self, prompts: Prompts, number: int) -> list[UInt8[Tensor, "3 H W"]]:
        """Return the pictures of a prompt as the encoder reads them."""
        prompt = prompts[number]
        try:
            return [self.maker.transform(picture) for picture in prompts.pictures(prompt)]
        except BadRecord as error:
            raise ConfigError(f"record {prompt.record['key']}: a picture cannot be read: {error}") from error

    @contextmanager
    def _seeded(self, first: int, device: torch.device) -> Generator[None, None, None]:
        """Make what is sampled depend on the seed and the batch alone, and not on what was sampled before it.

        Args:
            first: The number of the batch's first prompt.
            device: The device that generates.
        """
        if self._seed is None or not self.decoding["do_sample"]:
            yield
            return

        # The generators go on from their old states behind this batch: a training run is not disturbed.
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # The factor is larger than the number of prompts, so that no two seeds draw the same for some batch.
            torch.manual_seed(self._seed * 1_000_003 + first)
            yield

    def _read(self, ids: Int[Tensor, " L"]) -> Written:
        """Return the text of the new tokens of a row; behind the first end token there is padding."""
        tokens = ids.tolist()
        ends = self.decoding["eos_token_id"]
        end_places = (place for place, token in enumerate(tokens) if token in ends)
        num_tokens = next(end_places, None)

        text = decode_text(self.tokenizer, tokens)
        is_ended = num_tokens is not None
        for stop in self._stop_strings:
            head, matched, _ = text.partition(stop)
            if matched:
                text = head
                is_ended = True

        most = self.decoding.get("max_new_tokens")
        is_cut_off = not is_ended and most is not None and len(tokens) >= most
        if num_tokens is None:
            num_tokens = len(tokens)
        return Written(" ".join(text.split()), num_tokens, is_cut_off)


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of one row of token ids, without special tokens; spaces are not stripped."""
    # transformers' `decode` returns a list of texts for a list of rows; this is one row.
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


def _as_prompts(prompts: Prompts | Sequence[Mapping]) -> Prompts:
    return prompts if isinstance(prompts, Prompts) else prompts_of_records(prompts)


def _as_list(value: str | Iterable[str] | None) -> list[str]:
    """Return one text, several or none as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _of_all_ranks(written: list[Written], num_ranks: int) -> list[Written]:
    """Return the texts of all ranks, in the order of the ranks."""
    gathered: list = [None] * num_ranks
    dist.all_gather_object(gathered, written)

    texts: list[Written] = []
    for of_rank in gathered:
        texts.extend(of_rank)
    return texts
