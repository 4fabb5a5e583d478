"""What is found out about an evaluation's records before any model is loaded."""

from __future__ import annotations

import pytest

import visllama.evaluation.runner as module
from tests.support.judging import SETTINGS
from visllama.data.source import Source
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.runner import judge_weights, read_prompts

FILE = b"no picture: it is not opened"


class Records(Source):
    """Records that are in memory."""

    def __init__(self, *texts: dict) -> None:
        self.records = [{"key": str(number), "image": FILE, **text} for number, text in enumerate(texts)]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def asked(*ids: object, answer: str = "yes") -> dict:
    return {"questions": [{"question": "Is it?", "answers": [answer], "id": own_id} for own_id in ids]}


def read(task: str, source: Source, metrics: tuple[str, ...] = ()) -> module.Prompts:
    return read_prompts({"mine": {"task": task, "metrics": metrics}}, {"mine": source})["mine"]


def test_each_question_makes_a_prompt():
    assert len(read("vqa", Records(asked(1, 2), asked(3)))) == 3


def test_ids_that_come_twice_are_named():
    captions = [{"captions": ["a"], "image_id": number % 6} for number in range(12)]
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.source: 6 image ids .* first 0, 1, 2, 3, 4:"):
        read("caption", Records(*captions))
    with pytest.raises(ConfigError, match=r"evaluation\.mine\.source: 1 question ids come twice, first 1$"):
        read("vqa", Records(asked(1, 2), asked(1)))


def test_metrics_of_yes_and_no_want_such_answers():
    source = Records(asked(*range(7), answer="red"))
    assert len(read("vqa", source, ("accuracy",))) == 7
    with pytest.raises(
        ConfigError, match=r"evaluation\.mine\.metrics: 7 questions have another answer .*first 0, 1, 2, 3, 4$"
    ):
        read("vqa", source, ("accuracy", "F1"))


def test_no_weight_is_loaded_before(monkeypatch, tmp_path):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_weights", load)
    monkeypatch.setattr(module, "judged_sources", lambda evaluations, plugins: {"mine": Records(asked(1), asked(1))})
    evaluations = {"mine": {"task": "vqa", "metrics": ["accuracy"]}}
    with pytest.raises(ConfigError, match="come twice"):
        judge_weights(tmp_path, evaluations, SETTINGS, tmp_path)


def test_files_of_a_folder_are_looked_at_before(tmp_path):
    target = "visllama.evaluation.annotated_folder.AnnotatedFolder"
    (tmp_path / "r.json").write_text('{"a": ["said"]}')
    node = {"_target_": target, "images": str(tmp_path), "references": str(tmp_path / "r.json")}
    evaluations = {"files": {"task": "caption", "split": "test", "source": node}}
    with pytest.raises(ConfigError, match=r"evaluation\.files\.source: images=.*: 1 of 1 pictures are not to be had"):
        judged_sources(evaluations, [])
