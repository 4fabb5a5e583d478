import pytest

from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError


def test_records():
    source = ScenesSource("val", 4, 5)
    assert len(source) == 4 and source.item_counts == [5] * 4
    record = source[2]
    assert record["key"] == "val-000002" and record["image"].size == (48, 48) and len(record["captions"]) == 5
    assert source[2]["captions"] == record["captions"]


def test_a_record_is_the_same_in_any_order_of_access():
    one, two = ScenesSource("test"), ScenesSource("test")
    first = [one[i] for i in (0, 5, 3)]
    second = [two[i] for i in (3, 5, 0)][::-1]
    assert [r["captions"] for r in first] == [r["captions"] for r in second]
    assert [r["image"].tobytes() for r in first] == [r["image"].tobytes() for r in second]


def test_questions_are_about_the_scenes_of_the_captions():
    asked, told = ScenesSource("test", 20, holds="questions"), ScenesSource("test", 20)
    assert [asked[i]["image"].tobytes() for i in range(20)] == [told[i]["image"].tobytes() for i in range(20)]
    assert asked.item_counts == [len(asked[i]["questions"]) for i in range(20)] and sum(asked.item_counts) > 40
    ids = [question["id"] for i in range(20) for question in asked[i]["questions"]]
    assert len(set(ids)) == len(ids) and all(question["answers"][0] for question in asked[0]["questions"])


def test_a_conversation_asks_the_same_questions_and_marks_the_image_once():
    asked, said = (ScenesSource("train", 3, holds=holds)[2] for holds in ("questions", "conversations"))
    turns = said["conversations"]
    assert turns[0]["value"] == f"<image>\n{asked['questions'][0]['question']}"
    assert [turn["value"] for turn in turns[1::2]] == [question["answers"][0] for question in asked["questions"]]
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(asked["questions"])


def test_instructions_of_test_share_no_pair_of_words_with_training():
    def pairs(split, count):
        source = ScenesSource(split, count, holds="instructions")
        records = [source[i] for i in range(count)]
        assert not any("image" in record for record in records)
        return {frozenset(record["questions"][0]["answers"][0].replace(" and ", " ").split()) for record in records}

    assert not pairs("train", 1000) & pairs("test", 200), "in either order"


def test_golden_questions_and_instructions():
    """Published figures rest on them: they may not change."""
    first = ScenesSource("test", holds="questions")[0]
    assert (first["questions"], first["facts"]) == GOLDEN
    told = ScenesSource("test", holds="instructions")[0]["questions"][0]
    assert (told["question"], told["answers"], told["type"]) == TOLD


def test_what_it_does_not_hold_is_refused():
    with pytest.raises(
        ConfigError, match="holds=answers: scenes hold captions, questions, conversations, instructions"
    ):
        ScenesSource("train", holds="answers")


GOLDEN = (
    [
        {"question": "what color are the stars?", "answers": ["purple"], "type": "color", "id": "test-000000-color"},
        {"question": "how many stars are there?", "answers": ["two"], "type": "count", "id": "test-000000-count"},
        {"question": "what size are the stars?", "answers": ["small"], "type": "size", "id": "test-000000-size"},
        {
            "question": "what shape are the purple things?",
            "answers": ["star"],
            "type": "shape",
            "id": "test-000000-shape",
        },
    ],
    "purple star two pink background small",
)
TOLD = ("say yellow small again", ["yellow small"], "repeat")
