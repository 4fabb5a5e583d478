"""Text that is handed on while it is being generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer


class _Abandoned(StoppingCriteria):
    """Stop generating when nobody listens any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_text(
    write: Callable[[dict], list[int]], tokenizer: PreTrainedTokenizerBase, decoding: Mapping
) -> Generator[str, None, list[int]]:
    """Generate in a thread, yield the text so far each time that it has grown, and return the new ids.

    The thread has ended when the generator has: at its end, after an error, and where it is closed before.

    Args:
        write: Generates by these settings, and returns the new ids. What it raises is raised here.
        tokenizer: Decodes what was generated.
        decoding: The settings, as transformers' `generate` takes them; beams cannot be streamed.
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
        except BaseException as error:  # also an interrupt: the caller has to know
            raised.append(error)
        finally:
            streamer.end()  # else the loop below would wait for ever after an error

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
