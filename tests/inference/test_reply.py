"""An answer to a conversation that somebody else remembers is the one that a chat gives."""

from __future__ import annotations

import pytest

from tests.support.tiny import TEXT
from visllama.errors import ConfigError
from visllama.inference.pipeline import Pipeline
from visllama.inference.reply import reply
from visllama.text.template import Turn


@pytest.fixture
def pipeline(make_model):
    return Pipeline(make_model(), TEXT)


def test_it_is_the_answer_of_a_chat(pipeline, records):
    images = [record["image"] for record in records]
    chat = pipeline.chat(system="the")
    turns = [Turn("system", "the"), Turn("human", "the picture shows", 1)]
    answers = []
    for number, text in ((1, "the picture shows"), (2, "and here"), (0, "large")):
        shown = images[sum(turn.num_images for turn in turns[:-1]) :][:number]
        answers.append(chat.say(text, shown, max_new_tokens=6))
        assert reply(pipeline, turns, images[: sum(t.num_images for t in turns)], max_new_tokens=6) == answers[-1]
        turns = [*chat.turns, Turn("human", "and here", 2) if number == 1 else Turn("human", "large")]
    assert len(set(answers)) > 1


HUMAN, MODEL, SYSTEM = Turn("human", "a"), Turn("gpt", "a"), Turn("system", "a")


@pytest.mark.parametrize(
    "turns",
    [[], [SYSTEM], [MODEL], [HUMAN, MODEL], [HUMAN, HUMAN], [HUMAN, SYSTEM], [MODEL, HUMAN], [SYSTEM, SYSTEM, HUMAN]],
)
def test_turns_that_do_not_take_turns_are_refused(pipeline, turns):
    with pytest.raises(ConfigError, match="take turns"):
        reply(pipeline, turns, [])


def test_images_are_as_many_as_the_turns_name(pipeline, records):
    with pytest.raises(ConfigError, match="1 images, and the turns name 0"):
        reply(pipeline, [HUMAN], [records[0]["image"]])
    with pytest.raises(ConfigError, match="0 images, and the turns name 2"):
        reply(pipeline, [HUMAN._replace(num_images=2)], [])
