"""Make Samples of records: decode the images, tokenise the text, and write the labels.

In a Sample's ids, each image stands as one image span: [boi], `num_image_tokens` placeholder ids, and [eoi].
"""

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
    """One caption, question or conversation of a record: its token ids, its labels and its decoded images.

    Attributes:
        key: The record's key; the training data put the source's name before it.
        input_ids: The token ids, most often `BOS [boi] image*K [eoi] prompt response EOS`. The image span, from [boi]
            (begin of image) to [eoi] (end of image), holds K placeholder ids. BOS is there where the tokenizer has one.
        labels: `input_ids` on each response and its end token, IGNORE_INDEX elsewhere; not shifted.
        pixel_values: One `(3, H, W)` uint8 tensor for each image span, in the same order.
        source: The name of the record's source; empty where nobody has set it.
        fault: Why nothing is learned from the record; None where something is.
    """

    key: str
    input_ids: list[int]
    labels: list[int]
    pixel_values: list[Tensor]
    source: str = ""
    fault: BadRecord | None = None

    @property
    def num_targets(self) -> int:
        """Number of tokens that are learned: labels that are not IGNORE_INDEX, the first position left out."""
        # The first position has nothing before it to be predicted from.
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def masked_sample(key: str = "", source: str = "", fault: BadRecord | None = None) -> Sample:
    """Return a Sample of two ids without images and targets, which takes the place of a record that cannot be used.

    Args:
        key: The Sample's key.
        source: The name of the record's source.
        fault: Why the record cannot be used.
    """
    return Sample(key, [0, 0], [IGNORE_INDEX] * 2, [], source, fault)


class SampleMaker:
    """Make Samples of records; call it with a record.

    Args:
        tokenizer: The language model's tokenizer.
        transform: Decodes, resizes and crops an image for the vision encoder.
        num_image_tokens: The number of placeholder ids that each image has in the ids (K).
        max_text_tokens: The largest number of text tokens of a Sample that is learned; image spans and BOS are not
            counted. What is longer is cut at its end. A response that is cut keeps its end token, so that stopping is
            learned. A Sample whose response is to be generated is never cut.
        prompt: The text that asks for a caption. Where it is empty, the caption follows its image directly.
        template: Writes the turns of human and gpt as text with the model's markers.
        hint: A text that is added to each question, in a line of its own; empty adds nothing.
        num_positions: The largest number of ids of a Sample that is learned, image spans included: for a longer one,
            a call raises a `BadRecord`. None is no bound.
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
        """The id of the token that ends a response: the template's, or EOS where the tokenizer has no such token."""
        end_token = self.encoder.end_token(self.template.end)
        return self.encoder.special_ids[end_token]

    def with_prompt(self, prompt: str) -> SampleMaker:
        """Return a copy of this maker with another prompt; this maker is not changed.

        Args:
            prompt: The text that asks for a caption. It also becomes the hint, the text that is added to each question.
        """
        maker = copy(self)
        maker.prompt = prompt
        maker.hint = prompt
        return maker

    def as_judged(self, prompt: str | None, template: str | Mapping[str, str] | None) -> SampleMaker:
        """Return a copy of this maker with the prompt and the template of an evaluation; this one is not changed.

        Args:
            prompt: The evaluation's prompt, which also becomes the hint (the text that is added to each question); None
                keeps this maker's own prompt and hint.
            template: A template's name, or a mapping of `Template`'s attributes; None keeps this maker's own.

        Raises:
            ConfigError: If there is no template of this name, or the mapping makes no valid template.
        """
        # A copy in either case: the maker itself goes on serving training.
        maker = copy(self) if prompt is None else self.with_prompt(prompt)
        if template is not None:
            maker.template = find_template(template, self.tokenizer)
        return maker

    def __call__(self, record: Mapping, item: int = 0, answered: bool = True) -> Sample:
        """Return a Sample of one of the record's captions or questions, or of its conversation.

        Args:
            record: A record as `Source.read` returns it; it is not changed.
            item: The number of the caption or question, from 0; not used for a conversation.
            answered: Whether the last response is in the Sample. If not, it is left out, to be generated, and neither
                `max_text_tokens` nor `num_positions` is applied.

        Raises:
            BadRecord: If an image cannot be decoded, or an answered Sample is longer than `num_positions`.
            IndexError: If `item` is not less than the number of captions or questions.
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
        """Return the ids of a record's first caption or question, or of its conversation, without its last response.

        They are what a response is generated from. No image is decoded, and nothing is cut.

        Args:
            record: The record; its images may be left out.
            num_images: The number of images whose spans of placeholder ids stand before the text of a caption or
                question; not used for a conversation, whose marks say where its images stand.
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
        """Return the input ids and labels of segments, which are the pieces of text and images of one Sample.

        Args:
            segments: The pieces, as `Template.segments` returns them. Labels are set on pieces whose `supervised` is
                true, the responses.
            max_text_tokens: The largest number of tokens; image spans and BOS are not counted. None cuts nothing. What
                does not fit is cut off with all that follows it. A response that is cut keeps its end token; a response
                of which nothing fits is left out.

        Returns:
            Two lists of equal length: the ids, BOS first where the tokenizer has one, and the labels, which are
            IGNORE_INDEX where nothing is learned.
        """
        ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        labels = [IGNORE_INDEX] * len(ids)
        room = sys.maxsize if max_text_tokens is None else max_text_tokens
        starts = True

        for piece in self.encoder.pieces(segments):
            piece_ids = self._ids(piece, starts)
            # The end token is supervised too, but is no text: it is cut as a whole.
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
