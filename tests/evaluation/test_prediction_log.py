"""The log of what a model has written: cut by a kill it is gone on from, and never mixed with what something else made."""

import json

import pytest

from visllama.errors import ConfigError
from visllama.evaluation.prediction_log import PredictionLog, Written

IDS = [{"image_id": number} for number in (7, 3, 5)]
MADE_BY = {"weights": "a", "decoding": {"num_beams": 1}, "prompt": None}
TEXTS = [Written("a cat", 2, False), Written("", 0, False), Written('a "dog"\u2028', 40, True)]


def log_at(folder, made_by=MADE_BY, refuses_others=True, ids=IDS) -> PredictionLog:
    return PredictionLog(folder / "predictions.jsonl", ids, "caption", made_by, refuses_others)


@pytest.fixture
def written(tmp_path):
    """A folder with a log of all three texts."""
    log = log_at(tmp_path)
    log.begin(0)
    log.add(TEXTS[:1])
    log.add(TEXTS[1:])
    log.close()
    return tmp_path


def test_what_was_written_is_read(written):
    assert log_at(written).read() == TEXTS
    rows = [json.loads(line) for line in (written / "predictions.jsonl").read_text().splitlines()]
    assert rows[0] == {"image_id": 7, "caption": "a cat", "tokens": 2, "finish_reason": "stop"}
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "length"]


def test_there_is_nothing_before_the_first(tmp_path):
    assert log_at(tmp_path).read() == []


def test_each_batch_is_there_as_soon_as_it_is_done(tmp_path):
    log = log_at(tmp_path)
    log.begin(0)
    log.add(TEXTS[:2])
    assert log_at(tmp_path).read() == TEXTS[:2]


@pytest.mark.parametrize("num_bytes", range(1, 40, 3))
def test_a_line_that_was_cut_is_written_again(written, num_bytes):
    path = written / "predictions.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-num_bytes])
    log = log_at(written)
    found = log.read()
    assert found == TEXTS[:2]
    log.begin(len(found))
    assert path.read_bytes() == content[: content.rindex(b"\n", 0, -1) + 1], (
        "nothing that was written is lost meanwhile"
    )
    log.add(TEXTS[2:])
    log.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weights": "b"}, "another weights .weights=a there, b now"),
        ({"decoding": {"num_beams": 5}}, "another decoding"),
        ({"prompt": "Describe.", "weights": "b"}, "another weights and prompt"),
        ({"seed": 3}, "another seed"),
    ],
)
def test_what_something_else_made_is_refused_by_name(written, changed, says):
    with pytest.raises(ConfigError, match=says):
        log_at(written, MADE_BY | changed).read()


def test_training_judges_its_new_weights_anew(written):
    log = log_at(written, MADE_BY | {"weights": "b"}, refuses_others=False)
    assert log.read() == []
    log.begin(0)
    log.close()
    assert (written / "predictions.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image_id": 7', "line 1"),
        ('{"image_id": 8, "caption": "a", "tokens": 1, "finish_reason": "stop"}', "of another prompt than"),
        ('{"image_id": 7, "caption": "a", "finish_reason": "stop"}', "line 1 is not as it was written"),
        ("[7]", "line 1"),
    ],
)
def test_a_line_that_nobody_wrote_so_is_named(written, line, says):
    (written / "predictions.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=says):
        log_at(written).read()


def test_more_lines_than_prompts_are_refused(written):
    with pytest.raises(ConfigError, match="holds 3 predictions, and 2 are judged"):
        log_at(written, ids=IDS[:2]).read()
