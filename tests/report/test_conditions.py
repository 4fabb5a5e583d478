"""Scores that were made under other conditions are not compared by mistake."""

from __future__ import annotations

import pytest

from tests.support.compared_runs import DECODING, caption_evaluation
from visllama.errors import ConfigError
from visllama.report.conditions import check_alike, conditions, decoding_in_words, differences, short


def judged(**more):
    return conditions(caption_evaluation({"CIDEr": 1.0}, **more))


OTHERS = [
    ({"split": "val"}, "split: test in A, val in B"),
    ({"prompt": "A photo of"}, "prompt: none in A, A photo of in B"),
    ({"tokenizer": "ptb_keep_punctuation"}, "tokenizer: ptb in A, ptb_keep_punctuation in B"),
    ({"document_frequencies": "coco.json"}, "document_frequencies: of the images that are judged in A, coco.json in B"),
    ({"decoding": {**DECODING, "num_beams": 5}}, "decoding: num_beams=1 in A, num_beams=5 in B"),
    ({"decoding": None}, "decoding: greedy, at most 40 tokens in A, not known in B"),
]


@pytest.mark.parametrize(("more", "says"), OTHERS)
def test_what_was_judged_otherwise_is_refused_with_both_values(more, says):
    with pytest.raises(ConfigError, match="scenes: they were not judged alike") as caught:
        check_alike("scenes", {"A": judged(), "B": judged(**more)}, mixed=False)
    assert f"({says})" in str(caught.value) and "mixed=true" in str(caught.value)


def test_what_is_asked_for_is_told():
    found = check_alike("scenes", {"A": judged(), "B": judged(split="val")}, mixed=True)
    assert found == {"split": {"A": "test", "B": "val"}}


def test_a_language_models_own_token_ids_are_no_other_decoding():
    other = {**DECODING, "eos_token_id": [128001], "pad_token_id": 5}
    assert check_alike("scenes", {"A": judged(), "B": judged(decoding=other)}, mixed=False) == {}


def test_the_hint_of_questions_is_their_prompt():
    short_answer = conditions({"task": "vqa", "hint": "One word."})
    assert short_answer["prompt"] == "One word."
    assert "tokenizer" not in short_answer
    assert differences({"A": short_answer, "B": conditions({"task": "vqa", "hint": ""})})["prompt"]["B"] == "none"


def test_decodings_in_words():
    assert decoding_in_words(DECODING) == "greedy, at most 40 tokens"
    assert decoding_in_words({"num_beams": 5}) == "5 beams"
    assert decoding_in_words({"do_sample": True, "num_beams": 1}) == "sampled"
    assert decoding_in_words({"num_beams": "<b>"}) == "not known" == short(None)


def test_long_and_odd_values_are_cut_and_printable():
    assert short("x" * 100) == "x" * 60 + "..." and short("a\x1b[1m") == "a\\x1b[1m"
