"""Published figures are rows of their own, and never beside figures of other tokens."""

from __future__ import annotations

import os

import pytest

from visllama.errors import ConfigError
from visllama.report.published import Published, check_comparable, read_published

CONDITIONS = {"coco": {"tokenizer": "ptb", "split": "test"}}


def test_a_file_is_read(tmp_path):
    path = tmp_path / "papers.yaml"
    path.write_text(
        "- name: ClipCap\n  metrics: {CIDEr: 1.13, BLEU-4: 0.335}\n  source: Mokady 2021\n  tokenizer: ptb\n"
        "- {name: Other, metrics: {accuracy: 80}, source: X, split: val}\n"
    )
    assert read_published(path) == [
        Published("ClipCap", {"CIDEr": 1.13, "BLEU-4": 0.335}, "Mokady 2021", "ptb", None),
        Published("Other", {"accuracy": 80.0}, "X", None, "val"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no list"),
        ("{a: 1}", "holds no list"),
        ("- 3", "entry 1: is int"),
        ("- {name: X, metrics: {CIDEr: 1}, source: Y, sauce: Z}", "sauce: there is no such key"),
        ("- {metrics: {CIDEr: 1}, source: Y}", "has no name"),
        ("- {name: X, metrics: {CIDEr: 1}}", "has no source"),
        ("- {name: 3, metrics: {CIDEr: 1}, source: Y}", "name=3: must be a text"),
        ("- {name: X, metrics: {CIDEr: high}, source: Y}", "give numbers"),
        ("- {name: X, metrics: {}, source: Y}", "give numbers"),
        ("- {name: X, metrics: {CIDEr: 113.1}, source: Y}", "CIDEr=113.1: lies between 0 and 10 .* a CIDEr of 113 is 1.13"),
        ("- {name: X, metrics: {BLEU-4: 33.5}, source: Y}", "BLEU-4=33.5: lies between 0 and 1 "),
        ("- {name: X, metrics: {accuracy: 101}, source: Y}", "accuracy=101: lies between 0 and 100"),
        ("- &a {name: X}\n- *a", "it has aliases"),
        ("- !!python/object/apply:os.system [echo]", "cannot be read"),
        ("- [", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_it_is_named(tmp_path, content, says):
    (tmp_path / "papers.yaml").write_text(content)
    with pytest.raises(ConfigError, match=f"published=.*{says}"):
        read_published(tmp_path / "papers.yaml")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "papers.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_published(tmp_path / "papers.yaml")


@pytest.mark.parametrize(("key", "theirs"), [("tokenizer", "ptb_keep_punctuation"), ("split", "val")])
def test_other_tokens_or_another_split_are_refused_unless_asked_for(key, theirs):
    row = Published("X", {"CIDEr": 1.0}, "Y")._replace(**{key: theirs})
    with pytest.raises(ConfigError, match=f"published: X has {key}={theirs}, and coco of the runs {key}="):
        check_comparable([row], CONDITIONS, mixed=False)
    check_comparable([row], CONDITIONS, mixed=True)


def test_what_is_not_known_is_no_ground_to_refuse():
    check_comparable([Published("X", {"CIDEr": 1.0}, "Y")], CONDITIONS, mixed=False)
    check_comparable([Published("X", {"accuracy": 1.0}, "Y", "ptb", "test")], {"vqa": {"split": "test"}}, mixed=False)
