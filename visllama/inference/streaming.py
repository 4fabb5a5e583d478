"""Yield a text while it is being generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer


class _Abandoned(StoppingCriteria):
    """Stop generating when nobody listens any more.

    Attributes:
        event: Set when nobody listens any more.
    """

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(
        self,
        input_ids: Int[Tensor, "N T"],
        scores: object,
        **kwargs: object,
    ) -> Bool[Tensor, " N"]:
        """Return True for each row if nobody listens any more; transformers asks after each new token."""
        is_over = self.event.is_set()
        return torch.full((len(input_ids),), is_over, dtype=torch.bool, device=input_ids.device)


def stream_text(
    write: Callable[[dict], list[int]],
    tokenizer: PreTrainedTokenizerBase,
    decoding: Mapping,
) -> Generator[str, None, list[int]]:
    """Generate in a thread, and yield the whole text so far each time that it has grown.

    The thread has ended when this generator has ended: at its end, after an error, and if it is closed early.

    Args:
        write: A function that takes all arguments of transformers' `generate`, generates with them, and returns the new
            token ids. An error that the function raises is raised again by this generator.
        tokenizer: The tokenizer that decodes the new tokens.
        decoding: Arguments of transformers' `generate`. `num_beams` may not be above 1, since the best beam is known
            only at the end; transformers raises a ValueError.

    Yields:
        The whole text so far, without spaces around it.

    Returns:
        The new token ids that `write` has returned, as the value of `yield from`.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    abandoned = _Abandoned()
    criteria = [*(decoding.get("stopping_criteria") or []), abandoned]
    settings = {**decoding, "streamer": streamer, "stopping_criteria": criteria}
    written: list[int] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            written.extend(write(settings))
        except BaseException as error:
            # An interrupt too, which the caller has to know of.
            raised.append(error)
        finally:
            # After an error the loop below would otherwise wait for ever.
            streamer.end()

    thread = threading.Thread(target=work, name="visllama-stream", daemon=True)
    thread.start()
    try:
        text = ""
        for piece in streamer:
            text += piece
            if piece.strip():
                yield text.strip()
    finally:
        abandoned.event.set()
        thread.join()

    if raised:
        raise raised[0]
    return written
