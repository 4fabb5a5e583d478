"""Tars of others: indexed where they lie, under a name, and elsewhere."""

from __future__ import annotations

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from webdataset import TarWriter

from tests.prepare.made import picture, put, read
from visllama.data.shards.manifest import local_manifest
from visllama.errors import ConfigError
from visllama.prepare.adopt import find


def tars(folder, count: int = 2, records: int = 3):
    folder.mkdir(parents=True)
    for number in range(count):
        with TarWriter(str(folder / f"{number:05d}.tar")) as tar:
            for record in range(records):
                key = f"{number:05d}{record:04d}"
                tar.write({"__key__": key, "jpg": picture(record), "txt": f"number {record}", "json": {"url": "x"}})
    return folder


def test_tars_of_others_are_indexed_where_they_lie(run, tmp_path, capsys):
    folder = tars(tmp_path / "img2dataset")
    run("source=shards", f"from={folder}")
    assert (folder / "00001.tar.idx").is_file() and len(read(folder)) == 6
    assert (
        f"data=shards data.sources.shards.path={folder}" in capsys.readouterr().out and not (tmp_path / "data").exists()
    )


def test_tars_of_others_under_a_name(run, tmp_path):
    folder = tars(tmp_path / "img2dataset")
    out = run("source=shards", f"from='{folder}/*.tar'", "name=web")
    assert sorted(p.name for p in (out / "train").glob("*.tar")) == ["00000.tar", "00001.tar"]
    assert len(read(out / "train")) == 6 and not (folder / "00000.tar.idx").exists()
    assert run("source=shards", f"from='{folder}/*.tar'", "name=web") == out, "a second time changes nothing"
    with pytest.raises(ConfigError, match="holds other shards"):
        run("source=shards", f"from={tars(tmp_path / 'other', 3)}", "name=web")
    assert local_manifest(str(out / "train"), tmp_path).num_records.sum() == 6


def test_tars_that_hold_nothing_are_refused(run, tmp_path):
    put(tmp_path / "a.tar", bytes(1024))
    with pytest.raises(ConfigError, match="no record can be read"):
        run("source=shards", f"from={tmp_path}/a.tar", "name=web")
    assert not (tmp_path / "data" / "web" / "train" / "manifest.json").exists()


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        self.asked.append(self.path)


def test_tars_elsewhere_are_fetched_indexed_and_found_by_their_addresses(run, tmp_path):
    folder = tars(tmp_path / "web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}/{{00000..00001}}.tar"
    call = "source=shards", f"from='{place}'", f"paths.cache={tmp_path}/cache"
    try:
        with pytest.raises(ConfigError, match="needs a name="):
            run(*call)
        out = run(*call, "name=web")
        asked = len(Quiet.asked)
        run(*call, "name=web")
        assert len(Quiet.asked) == asked == 2, "what is indexed is not fetched again"
    finally:
        server.shutdown()
    manifest = local_manifest(str(out / "train"), tmp_path)
    assert manifest.num_records.tolist() == [3, 3] and manifest.shard(1).endswith("/00001.tar")
    assert all(os.path.isfile(manifest.index(n)) for n in range(2)) and not list(out.rglob("*.tar"))


@pytest.mark.parametrize("place", ["https://host/{00..03.tar", "https://host/00}.tar"])
def test_braces_that_do_not_match_are_refused_elsewhere_too(place):
    with pytest.raises(ConfigError, match=r"from=https://host/.*: its braces do not match"):
        find(place)
