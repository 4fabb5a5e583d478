"""Conversations: Alpaca's and LLaVA's, with no, one and two images."""

from __future__ import annotations

import json

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.errors import ConfigError


def turns(*texts: str, speakers=("human", "gpt")) -> list[dict]:
    return [{"from": speakers[n % 2], "value": text} for n, text in enumerate(texts)]


def test_alpaca_becomes_two_turns_without_an_image(run, tmp_path):
    entries = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
    ]
    out = run("source=instruct", f"conversations={put(tmp_path / 'alpaca.json', entries)}", "name=alpaca")
    assert read(out / "train") == {
        "00000000": (turns("Add.\n\n1 and 2", "3"), []),
        "00000001": (turns("Hi", "Hello"), []),
    }


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_with_no_one_and_two_images(run, tmp_path, suffix):
    for name in ("a.jpg", "b/c.png"):
        put(tmp_path / "images" / name, picture(len(name), "PNG" if name.endswith("png") else "JPEG"))
    entries = [
        {"id": "x", "conversations": turns("Hi", "Hello", "And?", "No.")},
        {"id": "y", "image": "a.jpg", "conversations": turns("<image>\nWhat?", "A.", speakers=("user", "assistant"))},
        {"id": "z", "image": ["a.jpg", "b/c.png"], "conversations": turns("<image> or <image>?", "Both.")},
    ]
    content = entries if suffix == "json" else "\n".join(map(json.dumps, entries))
    file = put(tmp_path / f"llava.{suffix}", content)
    out = run("source=instruct", f"conversations={file}", f"images={tmp_path}/images")
    found = read(out / "train")
    assert found["00000000"] == (entries[0]["conversations"], [])
    assert found["00000001"] == (turns("<image>\nWhat?", "A."), [picture(5)])
    assert found["00000002"] == (entries[2]["conversations"], [picture(5), picture(7, "PNG")])


def test_a_first_turn_of_gpt_is_left_out_and_told(run, tmp_path, capsys):
    """ShareGPT's part of LLaVA's conversations has some; LLaVA's training code skips that turn too."""
    put(tmp_path / "images" / "a.jpg", picture())
    system = {"from": "system", "value": "Be kind."}
    greeting = {"from": "gpt", "value": "Hello, <image>"}
    entries = [
        {"conversations": [greeting, *turns("What?", "A.")]},
        {"conversations": [system, greeting, *turns("What?", "A.", "And?", "No.")]},
        {"image": "a.jpg", "conversations": [greeting, *turns("<image>\nWhat?", "A.")]},
        {"instruction": "Hi", "output": "Hello"},
    ]
    out = run("source=instruct", f"conversations={put(tmp_path / 'a.json', entries)}", f"images={tmp_path}/images")
    assert read(out / "train") == {
        "00000000": (turns("What?", "A."), []),
        "00000001": ([system, *turns("What?", "A.", "And?", "No.")], []),
        "00000002": (turns("<image>\nWhat?", "A."), [picture()]),
        "00000003": (turns("Hi", "Hello"), []),
    }
    assert skipped(out / "train") == []
    assert "a.json: 3 conversations begin with a turn of gpt" in capsys.readouterr().out


def test_what_is_no_conversation_is_counted(run, tmp_path):
    put(tmp_path / "images" / "a.jpg", picture())
    bad = [
        ("marks", {"image": "a.jpg", "conversations": turns("no mark", "x")}),
        ("marks", {"conversations": turns("<image>", "x")}),
        ("marks", {"instruction": "<image>", "output": "x"}),
        ("marks", {"image": ["a.jpg", "a.jpg"], "conversations": turns("<image>", "x")}),
        ("turns", {"conversations": turns("a", "b", speakers=("gpt", "human"))}),
        ("turns", {"conversations": turns("a", "b", "c", speakers=("gpt", "gpt"))}),
        ("turns", {"conversations": turns("a")}),
        ("turns", {"conversations": turns("a", "b", speakers=("human", "tool"))}),
        ("text", {"conversations": turns("a", " ")}),
        ("text", {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "x"}]} ),
        ("text", {"conversations": turns("a", "\ud800")}),
        ("text", {"instruction": "", "input": "x", "output": "x"}),
        ("layout", {"image": 3, "conversations": turns("<image>", "b")}),
        ("layout", {"conversations": "x"}),
        ("layout", {"other": "x"}),
        ("layout", None),
        ("outside", {"image": "/etc/passwd", "conversations": turns("<image>", "b")}),
        ("missing", {"image": "z.jpg", "conversations": turns("<image>", "b")}),
    ]  # fmt: skip
    good = {"conversations": [{"from": "system", "value": "Be kind."}, *turns("a", "b", "c")]}
    file = put(tmp_path / "mine.json", [good, *(entry for _, entry in bad)])
    out = run("source=instruct", f"conversations={file}", f"images={tmp_path}/images", "max_bad_fraction=1")
    assert list(read(out / "train")) == ["00000000"]
    found = {int(e["where"].partition("[")[2].partition("]")[0]): e["reason"] for e in skipped(out / "train")}
    assert [found[n] for n in sorted(found)] == [reason for reason, _ in bad]


def test_images_without_their_folder_and_other_files_are_refused(run, tmp_path):
    file = put(tmp_path / "a.json", [{"image": "a.jpg", "conversations": turns("<image>", "x")}])
    with pytest.raises(ConfigError, match="images is not given, and 1 entries"):
        run("source=instruct", f"conversations={file}")
    with pytest.raises(ConfigError, match="not a list of conversations"):
        run("source=instruct", f"conversations={put(tmp_path / 'b.json', {'images': []})}")


def test_the_next_command_is_named(run, tmp_path, capsys):
    entries = [{"instruction": "Hi", "input": "", "output": "Hello"}]
    run("source=instruct", f"conversations={put(tmp_path / 'alpaca.json', entries)}")
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == (
        "Train on it:  visllama train stage=finetune init_from=RUN/weights data=shards 'data/source=[instruct]' "
        "evaluation=none"
    )
