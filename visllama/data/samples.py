"""From a record to a Sample: the image decoded, the text tokenised, the image span expanded, the labels written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visllama.data.record import images_of
from visllama.data.turns import turns_of
from visllama.errors import BadRecord
from visllama.images.transform import ImageTransform
from visllama.text.encode import TextEncoder
from visllama.text.template import Segment, Template
from visllama.text.templates import TEMPLATES, find_template
from visllama.text.tokens import BOI_ID, IGNORE_INDEX, image_span


@dataclass(frozen=True)
class Sample:
    """One decoded, tokenised, labelled record.

    Attributes:
        key: The record's key.
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
        """Number of supervised tokens."""
        # The first position has nothing before it to be predicted from.
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def masked_sample(key: str = "", source: str = "", fault: BadRecord | None = None) -> Sample:
    """Return a Sample that takes a record's place: it shows no image, and nothing is learned from it."""
    return Sample(key, [0, 0], [IGNORE_INDEX] * 2, [], source, fault)


class SampleMaker:
    """Make Samples of records.

    Args:
        tokenizer: The language model's tokenizer.
        transform: The vision encoder's transform of images.
        num_image_tokens: Vectors an image (K).
        max_text_tokens: Longest prompt + response + EOS that is learned; image spans are not counted. A longer response
            is cut, its EOS kept, so that stopping is always learned. A prompt to be answered is never cut.
        prompt: What is said to have a caption.
        template: How turns are written.
        hint: What stands in a line behind a question.
        num_positions: Most tokens of a sample that is learned, image spans included; None is no bound.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transform: ImageTransform,
        num_image_tokens: int,
        max_text_tokens: int,
        prompt: str,
        template: Template = TEMPLATES["plain"],
        hint: str = "",
        num_positions: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.transform = transform
        self.prompt = prompt

        self.num_image_tokens = num_image_tokens
        self.max_text_tokens = max_text_tokens
        self.template = template
        self.hint = hint

        self.num_positions = num_positions
        self.encoder = TextEncoder(tokenizer)

    @property
    def end_id(self) -> int:
        """The token that ends a response."""
        end_token = self.encoder.end_token(self.template.end)
        return self.encoder.special_ids[end_token]

    def with_prompt(self, prompt: str) -> SampleMaker:
        """Return a maker like this one with another prompt, which is also the hint behind questions."""
        maker = copy(self)
        maker.prompt = prompt
        maker.hint = prompt
        return maker

    def as_judged(self, prompt: str | None, template: str | Mapping[str, str] | None) -> SampleMaker:
        """Return a maker like this one with an evaluation's own prompt and template, where it has them."""
        # A copy in either case: the maker itself goes on serving training.
        maker = copy(self) if prompt is None else self.with_prompt(prompt)
        if template is not None:
            maker.template = find_template(template, self.tokenizer)
        return maker

    def __call__(self, record: Mapping, item: int = 0, answered: bool = True) -> Sample:
        """Return a Sample of one of the record's captions or questions, or of its conversation.

        Args:
            record: The record.
            item: Which caption or question.
            answered: Whether the last response is in the Sample. If not, it is left to be generated, and nothing is
                cut.

        Raises:
            BadRecord: If an image cannot be decoded, or what is to be learned is longer than `num_positions`.
        """
        segments = self._segments(record, item, answered)
        input_ids, labels = self.tokenise(segments, self.max_text_tokens if answered else None)
        if answered:
            self._check_positions(record, input_ids)

        # Images that stand behind the cut have no span left, and are not decoded.
        num_shown = input_ids.count(BOI_ID)
        shown_images = images_of(record)[:num_shown]
        pixel_values = [self.transform(image) for image in shown_images]
        return Sample(record["key"], input_ids, labels, pixel_values)

    def prompt_ids(self, record: Mapping, num_images: int) -> list[int]:
        """Return the input ids of a record up to its last response, which is to be generated; no image is decoded.

        Args:
            record: The record, with or without its images.
            num_images: The number of images that are shown with it.
        """
        turns = turns_of(record, 0, self.prompt, self.hint, num_images)
        segments = self.template.segments(turns, answered=False)
        input_ids, _ = self.tokenise(segments)
        return input_ids

    def _segments(self, record: Mapping, item: int, answered: bool) -> list[Segment]:
        num_images = len(images_of(record))
        turns = turns_of(record, item, self.prompt, self.hint, num_images)
        return self.template.segments(turns, answered)

    def _check_positions(self, record: Mapping, input_ids: list[int]) -> None:
        if self.num_positions is None or len(input_ids) <= self.num_positions:
            return
        raise BadRecord(
            "positions",
            f"{record['key']}: its {input_ids.count(BOI_ID)} images and its text make {len(input_ids)} tokens, and the "
            f"language model has {self.num_positions} positions",
        )

    def tokenise(self, segments: Iterable[Segment], max_text_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """Return the input ids and labels of segments.

        Args:
            segments: What is read and learned.
            max_text_tokens: Most tokens beside the image spans; None cuts nothing. What does not fit is cut off with
                all that follows it. A response that is cut keeps its end token; a response of which nothing fits is
                left out.
        """
        ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        labels = [IGNORE_INDEX] * len(ids)
        room = sys.maxsize if max_text_tokens is None else max_text_tokens
        starts = True

        for piece in self.encoder.pieces(segments):
            piece_ids = self._ids(piece, starts)
            is_response = piece.supervised and piece.kind == "text"

            if piece.kind == "image":
                # An image span is never cut, and takes none of the text's room.
                fitting_ids = piece_ids
            elif is_response:
                # One place is kept free for the end token.
                fitting_ids = piece_ids[: max(0, room - 1)]
            else:
                fitting_ids = piece_ids[: max(0, room)]
            is_cut = len(fitting_ids) < len(piece_ids)
            if is_cut and is_response and fitting_ids:
                fitting_ids = [*fitting_ids, self.end_id]

            ids += fitting_ids
            labels += fitting_ids if piece.supervised else [IGNORE_INDEX] * len(fitting_ids)
            if is_cut:
                break

            if piece.kind != "image":
                room -= len(piece_ids)
            # Many a tokenizer puts a space before a text that starts; one that goes on behind another must get none.
            starts = piece.kind == "image" or (piece.kind == "special" and self.encoder.starts_after_special)
        return ids, labels

    def _ids(self, piece: Segment, starts: bool) -> list[int]:
        if piece.kind == "image":
            return image_span(self.num_image_tokens)
        if piece.kind == "special":
            return [self.encoder.special_ids[piece.text]]
        return self.encoder.start(piece.text) if starts else self.encoder.go_on(piece.text)
