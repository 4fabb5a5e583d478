"""Lists of URLs: what is read, what is dropped, and which part gets which rows."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from visllama.errors import ConfigError
from visllama.prepare.request import Download
from visllama.prepare.url_list import read_part, refusal, write_list

FAKE_PYTHON = """#!{python}
import json, os, sys
columns, files = json.loads(sys.argv[4]), sys.argv[5:]
assert sys.argv[1:3] == ["-I", "-c"] and "secret" not in os.environ.values()
rows = [json.loads(line) for file in files for line in open(file)]
if "broken" in files[0]:
    sys.exit("no parquet file")
print(len(rows))
for row in rows:
    print(json.dumps([row[column] for column in columns]))
"""


@pytest.fixture
def spec(tmp_path):
    """A list whose command has a Python beside it that reads "parquet" files of JSON lines."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    return Download("name", str(tmp_path / "list.tsv"), tmp_path, command=str(python.with_name("img2dataset")))


def but(spec: Download, **changes) -> Download:
    return dataclasses.replace(spec, **changes)


def written(spec: Download) -> tuple[dict, list[list[dict]]]:
    """Write the list to a new folder; gives the counts and the rows of each file."""
    folder = spec.out / f"written{len(list(spec.out.glob('written*')))}"
    folder.mkdir()
    counts = write_list(spec, folder)
    files = sorted((folder / "list").glob("*.jsonl"))
    return counts, [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/a.jpg", None), ("HTTPS://Example.com:8080/a%20b.jpg?q=1#x", None), ("http://8.8.8.8/", None),
        ("http://bücher.example/ü.jpg", None), ("http://[2606:4700::1]/a", None), ("http://3com.example/", None),
        ("file:///etc/passwd", "not http(s)"), ("pipe:id", "not http(s)"), ("ftp://a.example/b", "not http(s)"),
        ("example.com/a.jpg", "not http(s)"), ("", "not http(s)"), ("URL:file:///etc/passwd", "not http(s)"),
        ("<file:///etc/passwd>", "not http(s)"), ("data:image/png;base64,AA", "not http(s)"), ("http:/a", "not http(s)"),
        ("http://", "no host"), ("http:///etc/passwd", "no host"), ("http://user:pw@a.example/", "no host"),
        ("http://a.example\\@127.0.0.1/", "no host"), ("http://127.0.0.1%3a80/", "no host"), ("http://%6cocalhost/", "no host"),
        ("http://a.example:port/", "no host"), ("http://a.example/a b", "no host"), ("http://a.example/\r\nX: y", "no host"),
        ("http://[::1/", "no host"), ("http://a..example/", "no host"), ("http://ü..example/", "no host"),
        ("http://127.0.0.1/", "private host"), ("http://localhost:80/", "private host"), ("http://a.localhost./", "private host"),
        ("http://127.1/", "private host"), ("http://2130706433/", "private host"), ("http://0x7f.0.0.1/", "private host"),
        ("http://0177.0.0.1/", "private host"), ("http://10.1.2.3/", "private host"), ("http://192.168.0.1/", "private host"),
        ("http://172.16.0.1/", "private host"), ("http://169.254.169.254/latest", "private host"), ("http://0.0.0.0/", "private host"),
        ("http://100.64.0.1/", "private host"), ("http://[::1]/", "private host"), ("http://[fe80::1]/", "private host"),
        ("http://[::ffff:127.0.0.1]/", "private host"), ("http://[fd00::1]/", "private host"), ("http://intranet/", "private host"),
        ("http://metadata.google.internal/", "private host"), ("http://\uff11\uff12\uff17.0.0.1/", "private host"),
        ("http://127\u30020\u30020\u30021/", "private host"), ("http://127.0.0.\u00ad1/", "private host"), ("http://224.0.0.1/", "private host"),
        ("http://a.example/" + "x" * 50_000, "too long"),
    ],
)  # fmt: skip
def test_urls_that_are_dropped(url, reason):
    assert refusal(url, "a caption") == reason
    allowed = None if reason == "private host" else reason
    assert refusal(url, "a caption", allow_private=True) == allowed


def test_a_tsv_is_taken_word_for_word(spec):
    lines = [
        'a "b"',
        "\thttp://a.example/0",
        "a\tb\thttp://a.example/1\r",
        '"c\thttp://a.example/2',
        "2012-01-01\thttp://a.example/3",
    ]
    Path(spec.list).write_bytes("\n".join(lines).encode() + b"\n\xff\thttp://a.example/4")
    counts, [rows] = written(spec)
    assert counts == {"rows": 6, "kept": 4, "refused_urls": {"not http(s)": 1, "no caption": 1}}
    assert rows == [
        {"url": f"http://a.example/{i}", "caption": caption}
        for i, caption in enumerate(["a\tb", '"c', "2012-01-01", "\ufffd"], start=1)
    ]


def test_files_hold_whole_shards_and_parts_are_slices(spec):
    Path(spec.list).write_text("".join(f"{i}\thttp://a.example/{i}\n" for i in range(250)))
    _, files = written(but(spec, samples_per_shard=1))
    assert [len(rows) for rows in files] == [100, 100, 50]
    parts = [written(but(spec, part=f"{i}/3"))[1][0] for i in (1, 2, 3)]
    assert [len(rows) for rows in parts] == [83, 83, 84]
    assert [row["caption"] for rows in parts for row in rows] == [str(i) for i in range(250)]


def test_a_written_list_is_not_read_again(spec, tmp_path):
    Path(spec.list).write_text("a\thttp://a.example/\n")
    counts = write_list(spec, tmp_path)
    Path(spec.list).unlink()
    assert write_list(spec, tmp_path) == counts


def test_no_row_is_left(spec, tmp_path):
    Path(spec.list).write_text("a\tfile:///x\n")
    with pytest.raises(ConfigError, match=r"no row that can be downloaded: .*'not http\(s\)': 1"):
        write_list(spec, tmp_path)
    assert not (tmp_path / "list").exists()


@pytest.mark.parametrize(("num_files", "expected"), [(1, [5, 5]), (5, [6, 4])])
def test_parquet_parts_keep_scores(spec, tmp_path, monkeypatch, num_files, expected):
    monkeypatch.setenv("HF_TOKEN", "secret")
    rows = [
        {"url": f"http://a.example/{i}", "text": f"t{i}", "score": i / 2 if i else None, "other": 1} for i in range(10)
    ]
    (tmp_path / "coyo").mkdir()
    for i in range(num_files):
        lines = rows[i * 10 // num_files : (i + 1) * 10 // num_files]
        (tmp_path / "coyo" / f"part-{i}.parquet").write_text("".join(json.dumps(row) + "\n" for row in lines))
    spec = but(spec, list=str(tmp_path / "coyo"), score_columns=("score",))
    parts = [written(but(spec, part=f"{i}/2")) for i in (1, 2)]
    assert [counts["rows"] for counts, _ in parts] == expected
    found = {row["caption"]: row for _, [rows] in parts for row in rows}
    assert found == {r["text"]: {"url": r["url"], "caption": r["text"], "score": r["score"]} for r in rows}


def test_lists_that_cannot_be_read(spec, tmp_path):
    (tmp_path / "broken.parquet").write_text("")
    broken = but(spec, list=str(tmp_path / "broken.parquet"))
    with pytest.raises(ConfigError, match=r"(?s)cannot be read by .*no parquet file"):
        written(broken)
    with pytest.raises(ConfigError, match="the Python beside it reads parquet files, but there is none"):
        written(but(broken, command=str(tmp_path / "img2dataset")))
    with pytest.raises(ConfigError, match="no such file"):
        written(but(spec, list=str(tmp_path / "absent.tsv")))
    with pytest.raises(ConfigError, match=r"a folder without \*\.parquet"):
        written(but(spec, list=str(tmp_path / "bin")))
    Path(spec.list).write_text("a\thttp://a.example/\n")
    with pytest.raises(ConfigError, match="a TSV has none"):
        written(but(spec, score_columns=("score",)))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_a_part_is_written_as_a_fraction(part):
    assert read_part("3/64") == (3, 64) and read_part(None) == (1, 1)
    with pytest.raises(ConfigError, match="write it as 3/64"):
        read_part(part)
