"""A sample is read token by token, and every source is among those that are shown."""

from __future__ import annotations

import re

from transformers import AutoTokenizer

from tests.support.inspections import SMALL
from tests.support.verbs import inspect
from visllama.data.samples import masked_sample
from visllama.errors import BadRecord
from visllama.inspect.reading import choose, readable, tokens_of
from visllama.inspect.seen import MeasuredSample, SeenStep
from visllama.model.locate import locate
from visllama.text.tokens import IGNORE_INDEX


def test_a_sample_is_read_token_by_token(compose_config):
    shown = inspect(compose_config("inspect", *SMALL, "stage.prompt=a picture of", "samples=3")).shown
    assert len(shown) == 3 and [one.sample.key for one in shown] == [
        sample.key for sample in inspect(compose_config("inspect", *SMALL)).steps[0].samples[:3]
    ]
    one, ids = shown[0], shown[0].sample.input_ids
    order = "".join(
        {"bos": "s", "boi": "<", "image": "i", "eoi": ">", "prompt": "p", "response": "r", "end": "e"}[t.segment]
        for t in one.tokens
    )
    assert re.fullmatch("s<i>p+r+e", order)
    assert one.tokens[2].name == "[image] x 10"
    unfolded = [token.id for token in one.tokens[:2]] + [-1] * 10 + [token.id for token in one.tokens[3:]]
    assert unfolded == ids
    assert [t.label for t in one.tokens if t.label is not None] == [x for x in one.sample.labels if x != IGNORE_INDEX]
    assert all(t.label == (t.id if t.segment in ("response", "end") else None) for t in one.tokens)


def test_every_source_of_a_mix_is_shown(compose_config):
    seen = inspect(compose_config("inspect", "stage=finetune", "stage.global_batch_size=64", "samples=1"))
    assert {one.sample.source for one in seen.shown} == {
        "scenes",
        "scenes_questions",
        "scenes_conversations",
        "scenes_instructions",
    }
    assert {count.name: count.samples for count in seen.counts}["all"] == 256
    by_source = {one.sample.source: {token.segment for token in one.tokens} for one in seen.shown}
    assert "image" not in by_source["scenes_instructions"] and "image" in by_source["scenes_questions"]
    assert "prompt" not in by_source["scenes"] and "prompt" in by_source["scenes_questions"]
    images = {count.name: count.with_images / count.samples for count in seen.counts}
    assert (images["scenes_instructions"], images["scenes"]) == (0, 1)


def test_a_source_too_rare_for_the_first_step_is_shown_of_a_later_one():
    def sample(key, source):
        return MeasuredSample(key, [1, 5, 3], [IGNORE_INDEX, 5, 3], [], source, end_id=3)

    first = SeenStep([sample("a", "often"), sample("b", "often"), sample("c", "often")], 6, 1, 9)
    second = SeenStep([sample("d", "often"), sample("e", "rare")], 4, 1, 6)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    shown = choose([first, second], 2, tokenizer)
    assert [(one.step, one.sample.key) for one in shown] == [(1, "a"), (2, "e")]
    assert [one.sample.key for one in choose([first, second], 9, tokenizer)] == ["a", "b", "c", "e"]
    assert tokens_of(masked_sample("x", "often", BadRecord("cut", "y")), tokenizer) == []


def test_long_samples_fold(compose_config, tmp_path, capsys):
    typed = ("stage=finetune", "stage.template=vicuna", "stage.global_batch_size=16", "num_samples=1", "samples=3")
    inspect(compose_config("inspect", *typed))
    said = capsys.readouterr().out
    assert re.search(r"\.\.\. \d+ more", said)
    page = (tmp_path / "inspect.html").read_text()
    assert said.count("... ") >= page.count("<details>") == page.count("</details>") > 0


def test_what_would_turn_a_terminal_is_written_out():
    assert readable("a\x1b[31m\n\u202e\udc80ü▁") == "a\\x1b[31m\\n\\u202e\\udc80ü▁"
