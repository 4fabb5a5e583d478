"""`visllama caption`, `ask` and `chat` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.support.tiny import TEXT, tiny_parts
from visllama.errors import ConfigError
from visllama.inference.pipeline import load
from visllama.inference.verbs import find_pictures, show
from visllama.model.weights import save_weights


def test_no_rows_are_shown_too(capsys):
    show([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    show([], as_json=False)
    assert "no texts" in capsys.readouterr().out


@pytest.fixture
def work(make_model, records, tmp_path):
    """A folder with weights and two pictures."""
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / "weights")
    (tmp_path / "photos").mkdir()
    for name, record in zip(("b.png", "a.JPG"), records, strict=False):
        record["image"].save(tmp_path / "photos" / name, "PNG" if name == "b.png" else "JPEG")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path


def visllama(*words: str, cwd, typed: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, input=typed)


def caption(*overrides: str, cwd) -> subprocess.CompletedProcess:
    return visllama("caption", *overrides, cwd=cwd)


def test_a_folder_as_json_and_as_a_table(work):
    before = sorted(path.name for path in work.iterdir())
    ended = caption("weights=weights", "images=photos", "json=true", "trainer=cpu", cwd=work)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [row["image"] for row in rows] == ["photos/a.JPG", "photos/b.png"] and all(row["caption"] for row in rows)
    shown = caption("weights=weights", "images=[photos/b.png]", "trainer=cpu", cwd=work)
    assert shown.returncode == 0 and "photos/b.png" in shown.stdout and "photos/a.JPG" not in shown.stdout
    assert sorted(path.name for path in work.iterdir()) == before, "it writes nothing"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["images=photos"], "no value for weights"),
        (["weights=nowhere", "images=photos"], "weights=nowhere: no such folder"),
        (["weights=weights", "images=nowhere"], "images=nowhere: no such file or folder"),
    ],
)
def test_bad_calls_end_with_a_message(work, overrides, says):
    ended = caption(*overrides, cwd=work)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no jpg"):
        find_pictures([tmp_path])


def test_folders_inside_folders_and_other_formats_are_read_and_broken_files_left_out(work, records):
    (work / "photos" / "old").mkdir()
    records[2]["image"].save(work / "photos" / "old" / "c.gif")
    records[3]["image"].save(work / "photos" / "old" / "d.bmp")
    (work / "photos" / "broken.jpg").write_text("this is no picture")

    ended = caption("weights=weights", "images=photos", "json=true", "trainer=cpu", cwd=work)

    assert ended.returncode == 0, ended.stderr
    names = [row["image"] for row in json.loads(ended.stdout)]
    assert names == ["photos/a.JPG", "photos/b.png", "photos/old/c.gif", "photos/old/d.bmp"]
    assert "left out: photos/broken.jpg: not to be read" in ended.stderr
    assert "1 of 5 pictures were left out" in ended.stderr


def test_where_no_picture_can_be_read_it_is_an_error(work):
    (work / "broken.jpg").write_text("this is no picture")
    ended = caption("weights=weights", "images=broken.jpg", "trainer=cpu", cwd=work)
    assert ended.returncode == 2 and "none of 1 can be read" in ended.stderr and "Traceback" not in ended.stderr


def test_each_question_is_asked_about_each_picture(work):
    questions = "question=[What is this?,How many are there?]"
    ended = visllama("ask", "weights=weights", "images=photos", questions, "json=true", "trainer=cpu", cwd=work)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [(row["image"], row["question"]) for row in rows] == [
        ("photos/a.JPG", "What is this?"),
        ("photos/a.JPG", "How many are there?"),
        ("photos/b.png", "What is this?"),
        ("photos/b.png", "How many are there?"),
    ]
    pipeline = load(work / "weights", accelerator="cpu")
    assert rows[3]["answer"] == pipeline.ask(work / "photos" / "b.png", "How many are there?")


def test_a_question_needs_no_picture(work):
    ended = visllama("ask", "weights=weights", "question=What is this?", "trainer=cpu", cwd=work)
    assert ended.returncode == 0 and "What is this?" in ended.stdout and "image" not in ended.stdout, ended.stderr


def test_a_conversation_is_typed_line_by_line(work):
    typed = "What is this?\n/image photos/b.png\n/image photos/nothing.png\nAnd this?\n/quit\nnever read\n"
    ended = visllama("chat", "weights=weights", "images=photos/a.JPG", "trainer=cpu", cwd=work, typed=typed)
    assert ended.returncode == 0, ended.stderr
    conversation = load(work / "weights", accelerator="cpu").chat(work / "photos" / "a.JPG")
    answers = [conversation.say("What is this?"), conversation.say("And this?", work / "photos" / "b.png")]
    assert ended.stdout.splitlines() == "\n".join(answers).splitlines()
    assert "photos/nothing.png: not to be read" in ended.stderr


@pytest.mark.parametrize("verb", ["ask", "chat"])
def test_what_has_to_be_typed_is_named(work, verb):
    ended = visllama(verb, cwd=work)
    assert ended.returncode == 2 and f"visllama {verb}: no value for weights: give weights=RUN/weights" in ended.stderr
