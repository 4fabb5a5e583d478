"""Text of others in Markdown, and folders of this machine, which nobody is told of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from visllama.markdown import escape, fenced, table, without_places


def shown(markdown: str) -> list[tuple[str, str]]:
    """Return the kinds and contents of what Markdown is read as, inside a line."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return [(one.type, one.content) for token in tokens for one in token.children or []]


@given(st.text(st.sampled_from("ab1 |\\`*_{}[]()#+-.!~<>$&:/;@^=\"'\n\té\u2028\u202e\x00"), min_size=1, max_size=40))
def test_text_is_shown_as_it_stands(text):
    line = f"x {escape(text)} x"
    assert {kind for kind, _ in shown(line)} <= {"text", "text_special"}
    assert "\n" not in line
    in_cell = MarkdownIt("commonmark").enable("table").render(table(["a", "b"], [[escape(text), "end"]]))
    assert in_cell.count("<td>") == 2 and "<td>end</td>" in in_cell


def test_long_texts_are_cut_and_addresses_stay_text():
    assert len(escape("a" * 10_000)) == 403
    assert escape("see https://a.b or www.a.b") == r"see https\://a.b or www\.a.b"


def test_no_line_ends_a_block_of_code():
    lines = ["a", "```", "````", "b\n```"]
    tokens = MarkdownIt("commonmark").parse(f"{fenced(lines, 'bash')}\n\nafter\n")
    assert [token.type for token in tokens][:2] == ["fence", "paragraph_open"]
    assert tokens[0].content == "a\n```\n````\nb ```\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a=/home/me/b/c.tar", "a=PATH/c.tar"),
        ("a=/home/me smith/c", "a=PATH/c"),
        ("/home/me/", "PATH/me"),
        ("a=~/c", "a=PATH/c"),
        ("a=~me/c", "a=PATH/c"),
        ("a=../../me/c", "a=PATH/c"),
        ("a=[/x/b,'/x/c']", "a=[PATH/b,'PATH/c']"),
        ("a=file:///x/b", "a=PATH/b"),
        ("a=s3://bucket/b?k=1", "a=s3://bucket/b"),
        ("a=https://me:word@host/b", "a=https://host/b"),
        ("a=${paths.data}/coco/train", "a=${paths.data}/coco/train"),
        ("init_from=outputs/a/b/weights", "init_from=outputs/a/b/weights"),
        ("model/connector=mlp", "model/connector=mlp"),
        ("a=org/name", "a=org/name"),
    ],
)
def test_folders_of_this_machine_are_not_told(text, told):
    assert without_places(text) == told
