"""From a record to a Sample: the image decoded, the text tokenised, the image span expanded, the labels written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visllama.data.faults import BadRecord
from visllama.data.images import ImageTransform
from visllama.prompts import Segment, caption_segments
from visllama.tokens import IGNORE_INDEX, image_span


@dataclass(frozen=True)
class Sample:
    """One decoded, tokenised, labelled record.

    Attributes:
        key: The record's name.
        input_ids: `BOS [boi] image*K [eoi] prompt response EOS`.
        labels: `input_ids` on the response and its EOS, IGNORE_INDEX elsewhere; not shifted.
        pixel_values: One `(3, H, W)` uint8 tensor an image.
        source: Which source the record is of.
        fault: Why nothing is learned from it.
    """

    key: str
    input_ids: list[int]
    labels: list[int]
    pixel_values: list[Tensor]
    source: str = ""
    fault: BadRecord | None = None

    @property
    def num_targets(self) -> int:
        """Supervised tokens; the first position has nothing before it to be predicted from."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def masked_sample(key: str = "", source: str = "", fault: BadRecord | None = None) -> Sample:
    """Stand in for a record: nothing to see, nothing to learn."""
    return Sample(key, [0, 0], [IGNORE_INDEX] * 2, [], source, fault)


class SampleMaker:
    """Make Samples of records.

    Args:
        tokenizer: The language model's.
        transform: The vision encoder's.
        num_image_tokens: Vectors an image (K).
        max_text_tokens: Longest prompt + response + EOS; the image span is not counted. A longer response is cut, its
            EOS kept, so that stopping is always learned.
        prompt: What stands between image and caption.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transform: ImageTransform,
        num_image_tokens: int,
        max_text_tokens: int,
        prompt: str,
    ) -> None:
        self.tokenizer, self.transform, self.prompt = tokenizer, transform, prompt
        self.num_image_tokens, self.max_text_tokens = num_image_tokens, max_text_tokens
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:  # a tokenizer.json may ask for either, as for a batch: here neither is meant
            self._backend.no_truncation()
            self._backend.no_padding()

    def with_prompt(self, prompt: str) -> SampleMaker:
        """Make the same with another prompt."""
        return SampleMaker(self.tokenizer, self.transform, self.num_image_tokens, self.max_text_tokens, prompt)

    def __call__(self, record: dict, caption: int | None) -> Sample:
        """Make a Sample that shows the record's caption of this index; None leaves it to be generated."""
        text = None if caption is None else record["captions"][caption]
        input_ids, labels = self.tokenise(caption_segments(self.prompt, text))
        return Sample(record["key"], input_ids, labels, [self.transform(record["image"])])

    def _encode(self, text: str) -> list[int]:
        """Give the tokens of a text; what looks like a special token in it is plain text."""
        if self._backend is None:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        self._backend.encode_special_tokens = True  # as `split_special_tokens` does, in a third of the time
        return self._backend.encode(text, add_special_tokens=False).ids

    def tokenise(self, segments: list[Segment]) -> tuple[list[int], list[int]]:
        """Give input ids and labels of one image and the segments after it.

        Each segment is tokenised by itself, so what is supervised never depends on how a tokenizer joins texts.
        """
        eos = self.tokenizer.eos_token_id
        text_ids: list[int] = []
        text_labels: list[int] = []
        for segment in segments:
            ids = self._encode(segment.text)
            if segment.supervised:
                room = max(0, self.max_text_tokens - len(text_ids) - 1)
                ids = [*ids[:room], eos]
            text_ids += ids
            text_labels += ids if segment.supervised else [IGNORE_INDEX] * len(ids)
        text_ids, text_labels = text_ids[: self.max_text_tokens], text_labels[: self.max_text_tokens]
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        head = [*bos, *image_span(self.num_image_tokens)]
        return head + text_ids, [IGNORE_INDEX] * len(head) + text_labels
