"""Text that is handed on while it is generated."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch

from tests.support.small_tokenizers import byte_level_bpe
from visllama.inference.streaming import stream_text

TEXT = "A red dog stands in the park, and the blue cat is behind it."


def write_by(settings: dict, ids: list[int]) -> list[int]:
    """Generate as transformers does: the prompt, then one token after the other, as long as nobody stops it."""
    streamer, (stop,) = settings["streamer"], settings["stopping_criteria"]
    streamer.put(torch.tensor([[0]]))
    written = []
    for token in ids:
        if bool(stop(torch.tensor([[0]]), None)[0]):
            break
        streamer.put(torch.tensor([token]))
        written.append(token)
    streamer.end()
    return written


def test_the_text_grows_to_what_was_written():
    tokenizer = byte_level_bpe()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    stream = stream_text(lambda settings: write_by(settings, ids), tokenizer, {})
    texts = []
    while True:
        try:
            texts.append(next(stream))
        except StopIteration as ended:
            assert ended.value == ids
            break
    assert texts[-1] == TEXT and len(texts) > 5
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_what_is_raised_while_it_generates_is_raised_here():
    def fail(settings: dict) -> list[int]:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        list(stream_text(fail, byte_level_bpe(), {}))


def test_no_thread_outlives_a_stream_that_is_left():
    tokenizer = byte_level_bpe()
    ids = tokenizer(TEXT * 50, add_special_tokens=False)["input_ids"]
    stream = stream_text(lambda settings: write_by(settings, ids), tokenizer, {})
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "visllama-stream"]
