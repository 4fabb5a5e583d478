"""An answer to a whole conversation that somebody else remembers."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.inference.writer import Writer
from visllama.text.template import Turn


def reply(writer: Writer, turns: Sequence[Turn], images: Sequence[Image.Image], **decoding) -> str:
    """Return the model's answer to the last turn of a conversation, of which nothing is remembered.

    Args:
        writer: The model.
        turns: A system turn, if any, then turns of the human and of the model one after the other; the human's is last.
        images: The images of all turns, in their order.
        decoding: As transformers' `generate` takes it; greedy and at most 40 tokens unless told otherwise.

    Raises:
        ConfigError: If the turns do not take turns, there are more or fewer images than they name, or it all does not
            fit the language model's positions.
    """
    spoken = [turn.speaker for turn in turns]
    told = spoken[1:] if spoken[:1] == ["system"] else spoken
    if len(told) % 2 == 0 or told != ["human", "gpt"] * (len(told) // 2) + ["human"]:
        raise ConfigError(f"turns of {', '.join(spoken) or 'nobody'}: human and gpt take turns, and the human is last")
    num_images = sum(turn.num_images for turn in turns)
    if num_images != len(images):
        raise ConfigError(f"{len(images)} images, and the turns name {num_images}")

    maker = writer.maker
    input_ids, _ = maker.tokenise(maker.template.segments(turns, answered=False))
    sample = Sample("", input_ids, [], [maker.transform(image) for image in images])
    (written,) = writer.write([sample], decoding)
    return maker.tokenizer.decode(written, skip_special_tokens=True).strip()
