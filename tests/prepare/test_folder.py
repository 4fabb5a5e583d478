"""A folder of pictures with a table."""

from __future__ import annotations

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.errors import ConfigError


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate(("a.jpg", "b c.png", "sub/d.webp", "e.jpg")):
        kind = {"g": "JPEG", "p": "WEBP"}[name[-1]] if not name.endswith("png") else "PNG"
        put(tmp_path / "images" / name, picture(number, kind))
    return tmp_path / "images"


def test_csv_with_several_rows_of_an_image(run, tmp_path, pictures):
    table = '\ufeffcaption,Image,note\nred,a.jpg,\n"blue, or ""green""",b c.png,x\n\n"two\nlines",a.jpg,\nlast,sub/d.webp,\n'
    out = run("source=folder", f"images={pictures}", f"table={put(tmp_path / 't.csv', table)}")
    assert read(out / "train") == {
        "00000001": (["red", "two\nlines"], [picture(0)]),
        "00000002": (['blue, or "green"'], [picture(1, "PNG")]),
        "00000004": (["last"], [picture(2, "WEBP")]),
    }


def test_jsonl_with_one_caption_or_a_list(run, tmp_path, pictures):
    table = '{"image": "a.jpg", "captions": ["x", "y"]}\n\n{"image": "e.jpg", "caption": "z"}\n'
    out = run("source=folder", f"images={pictures}", f"table={put(tmp_path / 't.jsonl', table)}", "split=val")
    assert {key: text for key, (text, _) in read(out / "val").items()} == {"00000001": ["x", "y"], "00000002": ["z"]}


FLICKR8K = {
    "captions.txt": 'image,caption\r\na.jpg,A child in a pink dress .\r\na.jpg,"A girl , going in ."\r\ne.jpg,Two dogs .\r\n',
    "Flickr8k.token.txt": "a.jpg#0\tA child in a pink dress .\na.jpg#1\tA girl , going in .\ne.jpg#0\tTwo dogs .\n",
    "results_20130124.token": "a.jpg#0\tA child in a pink dress .\na.jpg#1\tA girl , going in .\ne.jpg#0\tTwo dogs .",
}  # fmt: skip


@pytest.mark.parametrize("name", FLICKR8K)
def test_flickrs_own_tables(run, tmp_path, pictures, name):
    out = run("source=folder", f"images={pictures}", f"table={put(tmp_path / name, FLICKR8K[name])}")
    assert {key: text for key, (text, _) in read(out / "train").items()} == {
        "00000001": ["A child in a pink dress .", "A girl , going in ."],
        "00000003": ["Two dogs ."],
    }


def test_a_line_that_numbers_no_caption_is_named(run, tmp_path, pictures):
    table = put(tmp_path / "token.txt", "a.jpg#0\tone\na.jpg two\n\na.jpg#1\t \nb#1.jpg#0\tx\n")
    out = run("source=folder", f"images={pictures}", f"table={table}", "max_bad_fraction=0.9")
    found = {int(e["where"].split(":")[1]): e["reason"] for e in skipped(out / "train")}
    assert found == {2: "row", 4: "no caption", 5: "missing"}


def wrong(tmp_path, pictures):
    put(pictures / "text.jpg", "this is text")
    put(pictures / "cut.jpg", picture(9)[:-100])
    put(pictures / "empty.jpg", b"")
    rows = ["image,caption", "a.jpg,good", "gone.jpg,x", ",x", "e.jpg,", "a.jpg,one,two", "text.jpg,x", "cut.jpg,x",
            "../images/a.jpg,x", '"e.jpg","many', 'lines"', "empty.jpg,x"]  # fmt: skip
    return put(tmp_path / "t.csv", "\n".join(rows))


EXPECTED = {3: "missing", 4: "no image", 5: "no caption", 6: "row", 7: "format", 8: "image", 9: "outside", 12: "format"}


def test_check_only_names_every_problem_by_file_and_line_and_writes_nothing(run, tmp_path, pictures, capsys):
    with pytest.raises(ConfigError, match=r"8 of 10 records \(80.0%\) are bad"):
        run("source=folder", f"images={pictures}", f"table={wrong(tmp_path, pictures)}", "check_only=true")
    lines = capsys.readouterr().out.splitlines()
    found = {int(line.split(":")[1]): line.split(": ")[1] for line in lines if line.startswith("t.csv:")}
    assert found == EXPECTED
    assert not (tmp_path / "data").exists()


def test_check_only_of_what_is_right(run, tmp_path, pictures, capsys):
    table = put(tmp_path / "t.csv", "image,caption\na.jpg,x")
    run("source=folder", f"images={pictures}", f"table={table}", "check_only=true")
    assert "train: 1 records, 0 are bad" in capsys.readouterr().out and not (tmp_path / "data").exists()


def test_the_same_is_left_out_and_listed_where_it_is_allowed(run, tmp_path, pictures):
    out = run("source=folder", f"images={pictures}", f"table={wrong(tmp_path, pictures)}", "max_bad_fraction=0.9")
    assert {int(e["where"].split(":")[1]): e["reason"] for e in skipped(out / "train")} == EXPECTED
    assert {key: text for key, (text, _) in read(out / "train").items()} == {
        "00000001": ["good"],
        "00000009": ["many\nlines"],
    }


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "file,text\na.jpg,x", "it has file, text"),
        ("t.csv", "", "it has nothing"),
        ("t.csv", b"image,caption\na.jpg,\xff", "not UTF-8"),
        ("t.csv", "image,caption\n", "no record"),
        ("t.xlsx", "x", "must be a .csv, .txt, .token or .jsonl"),
        ("t.txt", "a.jpg a ring", "it has a.jpg a ring"),
        ("t.jsonl", "no json", "is no JSON|no JSON"),
    ],
)
def test_a_wrong_table_says_what_it_is(run, tmp_path, pictures, name, content, says):
    with pytest.raises(ConfigError, match=says):
        run("source=folder", f"images={pictures}", f"table={put(tmp_path / name, content)}")
    assert not (tmp_path / "data").exists()
