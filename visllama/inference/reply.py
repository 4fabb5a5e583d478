"""Answer a whole conversation, of which nothing is kept between two calls."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.evaluation.captioner import decode_text
from visllama.inference.writer import Writer
from visllama.text.template import Turn


def reply(writer: Writer, turns: Sequence[Turn], images: Sequence[Image.Image], **decoding) -> str:
    """Return the model's answer to the last turn of a conversation; nothing is kept for the next call.

    Args:
        writer: The model that answers.
        turns: At most one system turn, then turns of the human and of the model alternately; the last is the human's.
        images: The images of all turns, in their order.
        decoding: Arguments of transformers' `generate`; the default is greedy with at most 40 tokens.

    Raises:
        ConfigError: If the speakers do not alternate, there are more or fewer images than the turns have, or the
            conversation does not fit the language model's positions.
    """
    speakers = [turn.speaker for turn in turns]
    without_system = speakers[1:] if speakers[:1] == ["system"] else speakers
    num_answered = len(without_system) // 2
    expected = ["human", "gpt"] * num_answered + ["human"]
    if without_system != expected:
        speaker_words = ", ".join(speakers) or "nobody"
        raise ConfigError(f"turns of {speaker_words}: human and gpt take turns, and the human is last")

    num_images = sum(turn.num_images for turn in turns)
    if num_images != len(images):
        raise ConfigError(f"{len(images)} images, and the turns name {num_images}")

    maker = writer.maker
    # Unanswered: the template is written up to where the model's next response begins.
    segments = maker.template.segments(turns, answered=False)
    input_ids, _ = maker.tokenise(segments)
    pixel_values = [maker.transform(image) for image in images]

    sample = Sample("", input_ids, [], pixel_values)
    (written,) = writer.write([sample], decoding)
    return decode_text(maker.tokenizer, written).strip()
