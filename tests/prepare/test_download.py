"""Downloads from a list to merged shards: by a command that behaves like img2dataset, and (slow) by the real one."""

from __future__ import annotations

import dataclasses
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from visllama.errors import ConfigError
from visllama.prepare.download import download, merge
from visllama.prepare.request import Download

FAKE = """#!{python}
import io, json, os, pathlib, sys, tarfile, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
fake = pathlib.Path(__file__).parent
mode = (fake / "mode").read_text()
(fake / "calls").open("a").write("called\\n")
out = pathlib.Path(options["--output_folder"])
rows = [json.loads(line) for file in sorted(pathlib.Path(options["--url_list"]).glob("*.jsonl")) for line in file.open()]
size = int(options["--number_sample_per_shard"])
print("some output")
if mode == "exit":
    print("a reason"); sys.exit(3)
for shard in range(-(-len(rows) // size)):
    if (out / f"{{shard:05d}}_stats.json").exists():
        continue
    (fake / "made").open("a").write(f"{{shard}}\\n")
    status = {{}}
    batch = rows[shard * size : (shard + 1) * size]
    with tarfile.open(out / f"{{shard:05d}}.tar", "w") as tar:
        for i, row in enumerate(batch):
            reason = "HTTP Error 404" if mode == "fail" or "gone" in row["url"] else "success"
            status[reason] = status.get(reason, 0) + 1
            if reason == "success":
                for suffix, data in (("jpg", b"x"), ("txt", row["caption"].encode()), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{{shard:05d}}{{i:04d}}.{{suffix}}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    if mode == "missing" and shard == 1:
        continue
    (out / f"{{shard:05d}}_stats.json").write_text(json.dumps(
        {{"count": len(batch), "successes": status.get("success", 0), "status_dict": status}}))
    if mode == "hang" and shard == 1:
        (out / "00002.tar").write_bytes(b"torn"); (out / "00002_stats.json").write_text("{{")
        (fake / "hanging").write_text(str(os.getpid())); time.sleep(600)
"""


class Fake:
    """A folder with a command that behaves like img2dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "img2dataset").write_text(FAKE.format(python=sys.executable))
        (folder / "img2dataset").chmod(0o755)
        self.command = str(folder / "img2dataset")
        self.mode("work")

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())

    @property
    def made(self) -> list[int]:
        return [int(line) for line in (self.folder / "made").read_text().split()]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path / "bin")


@pytest.fixture
def spec(fake, tmp_path):
    """Twenty good rows of a TSV, four to a shard."""
    return tsv_spec(fake, tmp_path, [f"caption {i}\thttp://a.example/{i}.jpg" for i in range(20)])


def tsv_spec(fake: Fake, folder: Path, lines: list[str], **settings) -> Download:
    (folder / "list.tsv").write_text("\n".join(lines) + "\n")
    settings = {"samples_per_shard": 4, "command": fake.command} | settings
    return Download("cc3m", str(folder / "list.tsv"), folder / "cc3m" / "train", **settings)


def but(spec: Download, **changes) -> Download:
    return dataclasses.replace(spec, **changes)


def captions(out: Path) -> list[str]:
    found = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(member).read().decode() for member in tar if member.name.endswith(".txt")]
    return found


def test_a_tsv_from_end_to_end(fake, tmp_path):
    spec = tsv_spec(
        fake,
        tmp_path,
        [
            'a "quoted" one\thttp://a.example/1.jpg',
            "  \thttp://a.example/2.jpg",
            "a file\tfile:///etc/passwd",
            "no tab",
            "own network\thttp://127.0.0.1/3.jpg",
            'an "open quote\thttp://a.example/4.jpg\r',
            "2012-01-01\thttp://a.example/gone.jpg",
            "Straße 😀\thttp://a.example/5.jpg",
        ],
    )
    summary = download(spec)
    del summary["seconds"]
    assert summary == {
        "rows": 8,
        "refused_urls": {"not http(s)": 2, "no caption": 1, "private host": 1},
        "downloaded": 3,
        "failed": {"HTTP Error 404": 1},
        "shards": 1,
    }
    assert captions(spec.out) == ['a "quoted" one', 'an "open quote', "Straße 😀"]
    assert sorted(path.name for path in spec.out.iterdir()) == ["00000.tar", "_download"]
    assert json.loads((spec.out / "_download" / "merged.json").read_text())["rows"] == 8
    assert download(spec)["downloaded"] == 3 and fake.calls == 1, "a finished one is not run again"
    assert not list(spec.out.rglob("*.jsonl")), "the filtered list is as large as the list"


def test_parts_are_slices_and_merge_in_their_order(spec):
    for index in (3, 1):
        summary = download(but(spec, part=f"{index}/3"))
    assert summary["rows"] == 6 and not list(spec.out.glob("*.tar"))
    with pytest.raises(ConfigError, match="1 of 3 parts are not done: part-00002-of-00003"):
        merge(spec)
    download(but(spec, part="2/3"))
    summary = merge(spec)
    assert (summary["rows"], summary["downloaded"], summary["shards"]) == (20, 20, 6)
    assert [path.name for path in sorted(spec.out.glob("*.tar"))] == [f"{i:05d}.tar" for i in range(6)]
    assert captions(spec.out) == [f"caption {i}" for i in range(20)]
    assert merge(spec) == summary and len(captions(spec.out)) == 20, "a second merge changes nothing"


def test_a_merge_that_was_cut_short_goes_on(spec):
    for index in (1, 2):
        download(but(spec, part=f"{index}/2"))
    first = spec.out / "_download" / "part-00001-of-00002" / "shards"
    os.replace(first / "00000.tar", spec.out / "00000.tar")
    merge(but(spec, part="1/2"))
    assert captions(spec.out) == [f"caption {i}" for i in range(20)]


def test_merge_leaves_tars_of_something_else_alone(spec):
    spec.out.mkdir(parents=True)
    (spec.out / "00001.tar").write_text("mine")
    with pytest.raises(ConfigError, match=r"tars of something else, such as 00001\.tar"):
        download(spec)
    assert (spec.out / "00001.tar").read_text() == "mine" and len(list(spec.out.glob("*.tar"))) == 1


def test_merge_asks_which_number_of_parts(spec):
    with pytest.raises(ConfigError, match="parts of nothing"):
        merge(spec)
    download(but(spec, part="1/2"))
    download(but(spec, part="1/1"))
    with pytest.raises(ConfigError, match=r"parts of \[1, 2\]; name the number of parts"):
        merge(spec)


def test_other_settings_are_refused_by_name(spec):
    download(but(spec, part="1/2"))
    with pytest.raises(ConfigError, match="begun with image_size_px=256, now 384; put it back"):
        download(but(spec, part="1/2", image_size_px=384))
    download(but(spec, part="1/2", threads=3, min_success=0.1))
    download(but(spec, part="2/2", encode_quality=80))
    with pytest.raises(ConfigError, match="begun with encode_quality=80, now 95"):
        merge(spec)
    with open(spec.list, "a") as file:
        file.write("more\thttp://a.example/more\n")
    with pytest.raises(ConfigError, match="begun with another list;"):
        download(but(spec, part="1/2"))


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("fail", r"only 0 of 20 URLs gave an image \(HTTP Error 404: 20\): below min_success=0.5"),
        ("exit", r"(?s)ended with 3; 0 of 5 shards.*some output\na reason"),
        ("missing", r"ended with 0; 4 of 5 shards are complete"),
    ],
)
def test_ends_that_are_no_success(spec, fake, mode, says):
    fake.mode(mode)
    with pytest.raises(ConfigError, match=says):
        download(spec)
    assert not list(spec.out.glob("*.tar"))
    fake.mode("work")
    if mode == "fail":
        summary = download(but(spec, min_success=0.0))
        assert (summary["downloaded"], summary["failed"], summary["shards"]) == (0, {"HTTP Error 404": 20}, 0)
    else:
        download(spec)
        assert len(captions(spec.out)) == 20


def test_kill_9_leaves_nobody_behind_and_the_next_run_goes_on(spec, fake):
    fake.mode("hang")
    code = f"from visllama.prepare.download import *; download(Download(**{spec_values(spec)!r}))"
    process = subprocess.Popen([sys.executable, "-c", f"from pathlib import PosixPath; {code}"])
    until((fake.folder / "hanging").exists)
    with pytest.raises(ConfigError, match="another process is at it"):
        download(spec)
    process.send_signal(signal.SIGKILL)
    process.wait()
    orphan = int((fake.folder / "hanging").read_text())
    os.kill(orphan, 0)
    fake.mode("work")
    summary = download(spec)
    until(lambda: is_gone(orphan))
    assert fake.made == [0, 1, 2, 3, 4], "the torn shard 2 was begun by the first run, and made by the second"
    assert summary["downloaded"] == 20 and captions(spec.out) == [f"caption {i}" for i in range(20)]


def spec_values(spec: Download) -> dict:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_interrupt_ends_the_command_too(spec, fake):
    fake.mode("hang")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    timer = threading.Thread(
        target=lambda: (until((fake.folder / "hanging").exists), signal.raise_signal(signal.SIGINT))
    )
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            download(spec)
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()
    until(lambda: is_gone(int((fake.folder / "hanging").read_text())))


# ------------------------------------------------------------------------------------------ the real one, end to end


@pytest.fixture(scope="session")
def img2dataset(tmp_path_factory):
    """An environment with the real command: VISLLAMA_IMG2DATASET, or one made with pip."""
    if named := os.environ.get("VISLLAMA_IMG2DATASET"):
        return named
    names = [f"python3.{minor}" for minor in (11, 12, 10)]
    pythons = [sys.executable] if sys.version_info < (3, 13) else [p for p in map(shutil.which, names) if p]
    folder = tmp_path_factory.mktemp("img2dataset")
    for python in pythons:
        command = f"{python} -m venv {folder}/env && {folder}/env/bin/pip install -q img2dataset==1.47.0"
        ended = [subprocess.run(words.split(), capture_output=True, text=True) for words in command.split(" && ")][-1]
        if ended.returncode == 0:
            return str(folder / "env" / "bin" / "img2dataset")
        pytest.skip(f"img2dataset cannot be installed: {ended.stderr[-300:]}")
    pytest.skip("img2dataset needs Python 3.10 to 3.12")


@pytest.fixture
def site(monkeypatch):
    """A site on this machine: /N.jpg is an image whose color says N; other paths are 404 or no image."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stem = self.path.strip("/").removesuffix(".jpg")
            if not stem.isdigit() and stem != "text":
                return self.send_error(404)
            body = b"no image" if stem == "text" else jpeg(int(stem))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (600, 400), color(number)).save(file, "JPEG", quality=95)
    return file.getvalue()


def color(number: int) -> tuple[int, int, int]:
    return number % 4 * 80, number // 4 % 4 * 80, number // 16 * 60


def rows(site: str) -> list[tuple[str, str]]:
    good = [(f'image {i} "of\\ {i}', f"{site}/{i}.jpg") for i in range(60)]
    secret = Path(__file__).resolve().as_uri()
    return [*good, ("a", f"{site}/gone.jpg"), ("b", f"{site}/text.jpg"), ("c", secret), ("", f"{site}/1.jpg")]


def check_records(out: Path, size: tuple[int, int]) -> dict[int, dict]:
    """Hold each image to its caption; gives the JSON of each."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for key in {name.split(".")[0] for name in members}:
            number = int(members[f"{key}.txt"].split()[1])
            assert members[f"{key}.txt"].decode() == f'image {number} "of\\ {number}'
            image = Image.open(io.BytesIO(members[f"{key}.jpg"]))
            assert image.size == size
            pixel = image.convert("RGB").getpixel((5, 5))
            assert all(abs(a - b) < 8 for a, b in zip(pixel, color(number), strict=True)), (pixel, number)
            found[number] = json.loads(members[f"{key}.json"])
    assert sorted(found) == list(range(60))
    return found


EXPECTED = {"rows": 64, "refused_urls": {"not http(s)": 1, "no caption": 1}, "downloaded": 60}
WORKERS = {"allow_private": True, "processes": 2, "threads": 8, "samples_per_shard": 25}


@pytest.mark.slow
def test_cc3m_by_the_real_command(img2dataset, site, tmp_path):
    (tmp_path / "cc3m.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in rows(site)))
    spec = Download("cc3m", str(tmp_path / "cc3m.tsv"), tmp_path / "train", command=img2dataset, **WORKERS)
    summary = download(spec)
    assert EXPECTED.items() <= summary.items() and summary["shards"] == 3
    assert sum(summary["failed"].values()) == 2 and any("404" in reason for reason in summary["failed"])
    records = check_records(spec.out, (384, 256))
    assert all(record["url"].startswith("http://") for record in records.values())
    assert b"def check_records" not in b"".join(path.read_bytes() for path in spec.out.glob("*.tar"))
    assert sorted(path.name for path in spec.out.iterdir()) == ["00000.tar", "00001.tar", "00002.tar", "_download"]
    with pytest.raises(ConfigError, match=r"only 0 of 2 URLs gave an image \(.*404"):
        (tmp_path / "bad.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in rows(site)[60:]))
        download(dataclasses.replace(spec, list=str(tmp_path / "bad.tsv"), out=tmp_path / "bad"))


WRITE_PARQUET = """
import json, sys, pyarrow as pa, pyarrow.parquet as pq
for path, table in json.load(sys.stdin).items():
    pq.write_table(pa.table(table), path)
"""
SCORES = ("clip_similarity_vitb32", "clip_similarity_vitl14", "nsfw_score_opennsfw2")
SCORES += ("nsfw_score_gantman", "watermark_score", "aesthetic_score_laion_v2")


@pytest.mark.slow
def test_coyo_by_the_real_command(img2dataset, site, tmp_path):
    """Two parquet files in two parts, the second by a job of its own; scores are held to their image."""
    folder = tmp_path / "coyo"
    folder.mkdir()
    tables = {}
    for half in (0, 1):
        chosen = rows(site)[half::2]
        scores = {name: [round(half + i + j / 10, 3) for i in range(32)] for j, name in enumerate(SCORES)}
        scores["watermark_score"][0] = None
        ids = {"id": list(range(32)), "text": [row[0] for row in chosen], "url": [row[1] for row in chosen]}
        tables[str(folder / f"part-0000{half}.parquet")] = ids | scores
    python = Path(img2dataset).resolve().with_name("python")
    subprocess.run([str(python), "-c", WRITE_PARQUET], input=json.dumps(tables), text=True, check=True)
    spec = Download(
        "coyo",
        str(folder),
        tmp_path / "train",
        384,
        skip_reencode=True,
        score_columns=SCORES,
        command=img2dataset,
        **WORKERS,
    )
    for part in ("1/2", "2/2"):
        download(dataclasses.replace(spec, part=part))
    summary = merge(spec)
    assert EXPECTED.items() <= summary.items() and summary["shards"] == 4
    for number, record in check_records(spec.out, (576, 384)).items():
        expected = {name: number % 2 + number // 2 + j / 10 for j, name in enumerate(SCORES)}
        if number < 2:
            expected["watermark_score"] = None
        assert {name: record[name] for name in SCORES} == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"(?s)lacks \['absent'\]; it has \['id', 'text'"):
        download(dataclasses.replace(spec, score_columns=("absent",), out=tmp_path / "other"))
