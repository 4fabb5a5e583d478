"""Let a model caption records, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from visllama.data.collate import Collator
from visllama.data.samples import SampleMaker
from visllama.model.visllama import VisLlama


class Captioner:
    """Generate captions.

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
        """Yield the captions of each batch of records; a caption is one line of text."""
        device = model.markers.device
        settings = {
            "do_sample": False,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        for start in range(0, len(records), self.batch_size):
            samples = [self.maker(record, caption=None) for record in records[start : start + self.batch_size]]
            batch = {name: tensor.to(device) for name, tensor in self.collator.generation_batch(samples).items()}
            with torch.inference_mode():
                ids = model.generate(**batch, **(settings | self.decoding))
            yield [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def __call__(self, model: VisLlama, records: Sequence[Mapping]) -> list[str]:
        """Give a caption of each record."""
        return [caption for captions in self.batches(model, records) for caption in captions]
