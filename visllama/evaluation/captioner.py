"""Let a model write on after prompts: captions of pictures, or answers to questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visllama.data.collate import Collator
from visllama.data.samples import SampleMaker
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.prediction_log import Written
from visllama.evaluation.prompts import Prompts, prompts_of_records
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
    """Generate what a prompt's last response would be: a caption, or the answer to its one question.

    Args:
        maker: Makes the prompts' ids, and decodes their pictures.
        decoding: As transformers' `generate` takes it: num_beams, max_new_tokens, ...
        batch_size: Prompts a batch; it changes speed, not text.
        seed: Decides what is drawn where the decoding samples; None lets torch's generator decide, as it stands.

    Attributes:
        decoding: The whole of it; nothing of the base model's own `generation_config` adds to it.
    """

    def __init__(self, maker: SampleMaker, decoding: Mapping, batch_size: int, seed: int | None = None) -> None:
        self.maker, self.batch_size, self._seed = maker, batch_size, seed
        self.decoding = whole_decoding(maker, decoding)
        self._stop_strings = _as_list(self.decoding.get("stop_strings"))
        self.collator = Collator(
            maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, batch_size
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.maker.tokenizer

    def check_room(self, model: VisLlama, prompts: Prompts | Sequence[Mapping], where: str = "") -> None:
        """Refuse prompts that do not fit the language model's positions with the new tokens; nothing is generated.

        Args:
            model: Whose positions are meant.
            prompts: To write on after; or records in memory.
            where: The config key that they come from, for the message.

        Raises:
            ConfigError: Naming the first such record.
        """
        if model.num_positions is None:
            return
        for prompt in _as_prompts(prompts):
            name = f"{where}record {prompt.record['key']}: "
            remedy = "shorten its text, or leave the record out"
            length = len(self.maker.prompt_ids(prompt.record, prompt.num_images))
            check_positions(model.num_positions, length, self.decoding, name, remedy)

    def has_room(self, model: VisLlama, record: Mapping) -> bool:
        """Return whether a record's prompt and new tokens fit the language model's positions."""
        try:
            self.check_room(model, [record])
        except ConfigError:
            return False
        return True

    def batches(self, model: VisLlama, prompts: Prompts, first: int = 0) -> Iterator[list[Written]]:
        """Yield the texts of each batch of prompts; all ranks share the work, and get all texts.

        Args:
            model: With all its weights.
            prompts: To write on after.
            first: The number of the prompt to begin with: those before it are written already.

        Raises:
            ConfigError: If a picture cannot be decoded.
        """
        is_shared = dist.is_initialized()
        rank = dist.get_rank() if is_shared else 0
        num_ranks = dist.get_world_size() if is_shared else 1
        batches = prompts.batches(self.batch_size, first)
        for start in range(0, len(batches), num_ranks):
            at_once = batches[start : start + num_ranks]
            has_own = rank < len(at_once)
            # Sharded, a rank cannot generate alone: one that has nothing left does what another has too.
            written = self._write(model, prompts, at_once[rank] if has_own else at_once[-1])
            yield written if num_ranks == 1 else _of_all_ranks(written if has_own else [], num_ranks)

    def __call__(self, model: VisLlama, records: Sequence[Mapping]) -> list[str]:
        """Return the text of each record, which are in memory."""
        prompts = prompts_of_records(records)
        return [written.text for batch in self.batches(model, prompts) for written in batch]

    def _write(self, model: VisLlama, prompts: Prompts, numbers: range) -> list[Written]:
        """Write on after the prompts of one batch."""
        rows = [prompts[number] for number in numbers]
        inputs = self.collator.pad_left([self.maker.prompt_ids(row.record, row.num_images) for row in rows])
        images, places = self._decode(prompts, numbers)
        inputs["pixel_values"] = self.collator.stack_images(images)
        if places:
            inputs["image_of_span"] = torch.tensor(places)

        device = model.markers.device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        settings = dict(self.decoding)
        if self._stop_strings:
            settings["tokenizer"] = self.tokenizer
        with torch.inference_mode(), self._dice(numbers.start, device):
            ids = model.generate(**inputs, **settings)
        return [self._read(row) for row in ids]

    def _decode(self, prompts: Prompts, numbers: range) -> tuple[list[Tensor], list[int]]:
        """Decode each picture of a batch once.

        Returns:
            The pictures, and for each image span of the batch in reading order the number of its picture.
        """
        images: list[Tensor] = []
        places_of: dict[int, list[int]] = {}
        places: list[int] = []
        for number in numbers:
            prompt = prompts[number]
            if prompt.shown is None:
                continue
            if prompt.shown not in places_of:
                decoded = self._transform(prompts, number)
                places_of[prompt.shown] = list(range(len(images), len(images) + len(decoded)))
                images += decoded
            places += places_of[prompt.shown]
        return images, places

    def _transform(self, prompts: Prompts, number: int) -> list[Tensor]:
        try:
            return [self.maker.transform(picture) for picture in prompts.pictures(prompts[number])]
        except BadRecord as error:
            raise ConfigError(f"record {prompts[number].record['key']}: a picture cannot be read: {error}") from error

    @contextmanager
    def _dice(self, first: int, device: torch.device) -> Iterator[None]:
        """Let what is sampled depend on a seed and on the batch alone, not on what was sampled before it."""
        is_seeded = self.decoding["do_sample"] and self._seed is not None
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=is_seeded):
            if is_seeded:
                torch.manual_seed(self._seed * 1_000_003 + first)
            yield

    def _read(self, ids: Tensor) -> Written:
        """Return what the new tokens of a row say; behind the first end token there is padding."""
        tokens = ids.tolist()
        ends = self.decoding["eos_token_id"]
        last = next((place for place, token in enumerate(tokens) if token in ends), None)
        is_ended = last is not None
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in self._stop_strings:
            head, found, _ = text.partition(stop)
            if found:
                text = head
                is_ended = True
        most = self.decoding.get("max_new_tokens")
        is_cut_off = not is_ended and most is not None and len(tokens) >= most
        return Written(" ".join(text.split()), last if last is not None else len(tokens), is_cut_off)


def _as_prompts(prompts: Prompts | Sequence[Mapping]) -> Prompts:
    return prompts if isinstance(prompts, Prompts) else prompts_of_records(prompts)


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _of_all_ranks(written: list[Written], num_ranks: int) -> list[Written]:
    gathered: list = [None] * num_ranks
    dist.all_gather_object(gathered, written)
    return [text for of_rank in gathered for text in of_rank]
