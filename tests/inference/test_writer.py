"""Pictures are read and texts are written, or what is in the way is named."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import TEXT
from visllama.errors import ConfigError
from visllama.inference.pipeline import Pipeline


@pytest.fixture
def pipeline(make_model):
    return Pipeline(make_model(dtype=torch.float32), TEXT)


def test_what_is_no_picture_is_named(pipeline, tmp_path):
    (tmp_path / "a.png").write_text("words")
    for use in (pipeline.caption, lambda path: pipeline.ask([path], "what?"), pipeline.chat):
        with pytest.raises(ConfigError, match=r"a\.png: not to be read"):
            use(tmp_path / "a.png")


def test_a_caption_past_the_positions_is_refused(pipeline, records):
    with pytest.raises(ConfigError, match=r"max_new_tokens=500 behind 13 tokens: the language model has 512 positions"):
        pipeline.caption(records[0]["image"], max_new_tokens=500)


def test_more_texts_than_questions_are_refused(pipeline, records):
    with pytest.raises(ConfigError, match="num_return_sequences=2"):
        pipeline.ask(records[0]["image"], "there", num_beams=2, num_return_sequences=2)
