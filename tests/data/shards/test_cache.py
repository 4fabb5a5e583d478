"""The cache of remote shards: whole files or clear errors, one download a node, and no more bytes than asked for."""

from __future__ import annotations

import errno
import fcntl
import http.client
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha1

import fsspec
import pytest

from tests.support.fault_server import (
    Chunked,
    Cut,
    Drip,
    Fault,
    FaultServer,
    Length,
    Redirect,
    Reset,
    Stall,
    Status,
    WholeBody,
)
from tests.support.processes import is_running
from visllama.data.shards import cache as module
from visllama.data.shards.cache import ShardCache
from visllama.data.shards.remote import REMOTE, FetchError
from visllama.errors import ConfigError

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(BODY)
    with FaultServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def make_cache(tmp_path):
    def make(budget_bytes=None, attempts=4, timeout_s=0.3, folder="cache"):
        return ShardCache(tmp_path / folder, budget_bytes, attempts, timeout_s, backoff_s=0.02)

    return make


def read(cache, url, size) -> bytes:
    with cache.open(url, size) as file:
        return file.read()


def names(cache) -> set[str]:
    return {path.name[17:] for path in cache.folder.iterdir() if path.name != ".lock"}


def wait_for(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------------------- faults


FAULTS = {
    "none": [],
    "503": [Status(503)] * 3,
    "429": [Status(429)],
    "408": [Status(408)],
    "cut": [Cut(1000), Cut(70_000), Cut(0)],
    "cut-whole": [Cut(100_000), WholeBody()],
    "cut-cut-whole-cut": [Cut(100_000), Cut(50_000), Fault(ignore_range=True, after=10, end="close")],
    "stall": [Stall(5000, 30)],
    "stall-at-once": [Stall(0, 30)],
    "drip": [Drip(0.02)],
    "chunked": [Chunked(1000), Chunked(200_000), Chunked()],
    "chunked-cut-after-a-chunk": [Chunked(150_010), Chunked(300_020)],
    "reset": [Reset(), Reset(200_000)],
    "too-long": [Length(+10)],
    "moved": [Redirect("/b.tar")],
    "moved-for-good": [Redirect("/b.tar", 308)],
    "all": [Status(500), Cut(5), Stall(100, 30)],
}


@pytest.mark.parametrize(("stamps", "size"), [(True, None), (False, len(BODY))], ids=["stamps", "size"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_all_bytes_arrive(faults, stamps, size, server, make_cache):
    server.stamps, server.files["/b.tar"] = stamps, BODY
    for fault in faults:
        server.fail("/a.tar", fault)
    cache = make_cache()
    assert sha1(read(cache, server.url("/a.tar"), size)).digest() == sha1(BODY).digest()
    count = sum(server.requests.values())
    assert read(cache, server.url("/a.tar"), size) == BODY and sum(server.requests.values()) == count, "it is there"
    assert names(cache) == {"a.tar"}


def test_a_body_shorter_than_it_says_is_told_only_by_the_index(server, make_cache):
    server.fail("/a.tar", Length(-10))
    assert read(make_cache(), server.url("/a.tar"), len(BODY)) == BODY and server.requests["/a.tar"] == 2


def test_goes_on_where_it_was_cut(server, make_cache):
    for after in (1000, 50_000):
        server.fail("/a.tar", Cut(after))
    assert read(make_cache(), server.url("/a.tar"), None) == BODY
    assert [asked for _, asked in server.log] == [None, "bytes=1000-", "bytes=51000-"]


@pytest.mark.parametrize("stamps", [True, False], ids=["stamps", "no-stamps"])
@pytest.mark.parametrize("then", [OTHER, OTHER[:200_000]], ids=["as-long", "shorter"])
def test_never_mixes_two_contents(then, stamps, server, make_cache):
    server.stamps = stamps
    server.fail("/a.tar", Cut(100_000, then=then))
    assert read(make_cache(), server.url("/a.tar"), None) == then


def test_a_part_of_another_content_is_refused_though_the_server_sends_it(server, make_cache, monkeypatch):
    server.fail("/a.tar", Cut(100_000, then=OTHER))
    get = http.client.HTTPMessage.get
    monkeypatch.setattr(  # a server that knows Range but not If-Range
        http.client.HTTPMessage, "get", lambda self, name, default=None: default if name == "If-Range" else get(self, name, default)
    )  # fmt: skip
    assert read(make_cache(), server.url("/a.tar"), len(OTHER)) == OTHER
    assert [asked for _, asked in server.log] == [None, "bytes=100000-", None]


@pytest.mark.parametrize(
    ("fault", "count", "said"),
    [
        (Status(404), 1, "404.*check the address"),
        (Status(410), 1, "410"),
        (Status(401), 1, "401.*access"),
        (Status(403), 1, "403.*access"),
        (Status(503), 3, r"503.*attempt 3 of 3.*resume"),
        (Cut(0), 3, "0 bytes came, and it has 300000"),
        (Stall(10, 30), 3, "[Tt]ime.?[Oo]ut"),
        (Reset(), 3, "[Rr]eset|closed"),
        (Length(+10), 3, "300010 bytes at the server and 300000 in the index.*index again"),
        (Length(-10), 3, "299990 bytes at the server"),
        (Redirect("file:///etc/passwd"), 1, "file:///etc/passwd"),
        (Redirect("ftp://127.0.0.1/x"), 1, "ftp:"),
        (Redirect("data:,x"), 1, "data:"),
        (Redirect("/a.tar"), None, "loop"),
        (Fault(encoding="gzip"), 1, "plain file"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value),
)
def test_an_error_says_what_happened(fault, count, said, server, make_cache):
    server.fail("/a.tar", fault, times=99)
    cache = make_cache(attempts=3)
    with pytest.raises(FetchError, match=f"a.tar: .*{said}"):
        cache.open(server.url("/a.tar"), len(BODY))
    assert count is None or server.requests["/a.tar"] == count
    assert not names(cache), "nothing is left"


def test_a_body_of_unknown_length_is_not_taken_for_whole(server, make_cache):
    server.fail("/a.tar", Length(None), times=2)
    assert read(make_cache(), server.url("/a.tar"), len(BODY)) == BODY
    with pytest.raises(FetchError, match="does not tell its length"):
        make_cache(folder="second").open(server.url("/a.tar"), None)


def test_waits_as_long_as_the_server_asks_up_to_a_bound(server, make_cache, monkeypatch, caplog):
    server.fail("/a.tar", Status(429, retry_after="1"))
    make_cache().fetch(server.url("/a.tar"), None)
    assert [message[-14:] for message in caplog.messages] == ["again in 1.0 s"]
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.1)
    server.fail("/a.tar", Status(503, retry_after="Wed, 21 Oct 2099 07:28:00 GMT"))
    server.fail("/a.tar", Status(503, retry_after="soon"))
    make_cache(folder="second").fetch(server.url("/a.tar"), None)
    assert caplog.messages[1].endswith("again in 0.1 s"), "the bound, and not seventy years"


def test_errors_survive_pickling_and_hide_secrets(server, make_cache):
    with pytest.raises(FetchError) as caught:
        make_cache(attempts=1).open(server.url("/no.tar?signature=SECRET"), None)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as a worker hands it to the main process
    assert "SECRET" not in str(caught.value) and str(copy) == str(caught.value)


def test_a_full_disk(server, make_cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = make_cache()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FetchError, match=r"No space left.*data\.cache_gib"):
        cache.open(server.url("/a.tar"), len(BODY))
    assert not names(cache) and server.requests["/a.tar"] == 1


# ---------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize(
    "path",
    ["/..%2f..%2fx", "/../../x", "/.", "/", "/a b\n.tar?x=/../y", "/" + "n" * 300 + ".tar", "/é.tar", "/a.tar#/../b", "/part-x", "/.lock"],
)  # fmt: skip
def test_stays_in_its_folder(path, make_cache):
    cache = make_cache()
    place = cache.path("https://h" + path)
    assert place.parent == cache.folder and len(place.name) <= 117 and place.name.isascii() and "%" not in place.name
    assert place.name[16] == "-" and place.name[:16] == sha1(("https://h" + path).encode()).hexdigest()[:16]


def test_names_that_need_quoting_are_asked_for(server, make_cache):
    server.files["/%C3%A9%20x.tar"] = BODY
    assert read(make_cache(), server.url("/é x.tar"), None) == BODY


def test_equal_names_of_two_sources_never_mix(server, make_cache):
    server.files |= {"/cc3m/00000.tar": BODY, "/coyo/00000.tar": OTHER}
    cache = make_cache()
    for _ in range(2):
        assert read(cache, server.url("/cc3m/00000.tar"), None) == BODY
        assert read(cache, server.url("/coyo/00000.tar"), None) == OTHER


def test_a_shard_that_changed_with_its_index_is_fetched_anew(server, make_cache):
    cache = make_cache()
    with cache.open(server.url("/a.tar"), len(BODY)) as old:
        server.files["/a.tar"] = OTHER[:1000]
        assert read(cache, server.url("/a.tar"), 1000) == OTHER[:1000]
        assert old.read() == BODY, "who reads the old one goes on"


# ------------------------------------------------------------------------------------------------------------- fsspec


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(REMOTE, "memory", "fsspec")
    system = fsspec.filesystem("memory")
    system.pipe_file("/shards/a.tar", BODY)
    yield system
    system.store.clear()


def test_other_file_systems(memory, make_cache):
    cache = make_cache(attempts=2)
    assert read(cache, "memory://shards/a.tar", len(BODY)) == BODY
    with pytest.raises(FetchError, match=r"FileNotFoundError.*attempt 1 of 2"):
        cache.open("memory://shards/no.tar", None)
    with pytest.raises(FetchError, match="300000 bytes at the server and 7 in the index"):
        make_cache(attempts=1, folder="second").open("memory://shards/a.tar", 7)


@pytest.mark.parametrize("changes", [False, True])
def test_other_file_systems_resume_by_seeking(changes, memory, make_cache, monkeypatch):
    sought, real = [], type(memory).open

    class Failing:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def seek(self, to):
            sought.append(to)
            return self.file.seek(to)

        def read(self, count):
            if len(sought) < 3 and self.file.tell() >= 100_000 * len(sought):
                if changes and len(sought) == 1:
                    memory.pipe_file("/shards/a.tar", OTHER)
                raise RuntimeError("as the backend likes")
            return self.file.read(100_000)

    monkeypatch.setattr(type(memory), "open", lambda self, path, mode="rb", **k: Failing(real(self, path, mode, **k)) if mode == "rb" else real(self, path, mode, **k))  # fmt: skip
    assert read(make_cache(), "memory://shards/a.tar", None) == (OTHER if changes else BODY)
    assert sought == ([0, 0, 200_000] if changes else [0, 100_000, 200_000])


def test_other_file_systems_that_tell_no_length(memory, make_cache, monkeypatch):
    monkeypatch.setattr(type(memory), "info", lambda self, path: {"name": path, "size": None, "type": "file"})
    with pytest.raises(FetchError, match="does not tell its length"):
        make_cache().open("memory://shards/a.tar", None)


def test_a_missing_package_is_named(make_cache, monkeypatch):
    for name in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    for address, package in (("s3://b/a.tar", "s3fs"), ("gs://b/a.tar", "gcsfs"), ("abfss://b/a.tar", "adlfs")):
        with pytest.raises(ConfigError, match=f"pip install {package}"):
            make_cache().open(address, None)


# ---------------------------------------------------------------------------------------------------------- processes


def work(cache, url, size, wanted, results) -> None:
    results.put(sha1(read(cache, url, size)).digest() == sha1(wanted).digest())


@pytest.mark.parametrize(("start", "count"), [("fork", 8), ("spawn", 2)])
def test_one_download_for_all_processes(start, count, server, make_cache):
    server.fail("/a.tar", Drip(0.03))
    context = multiprocessing.get_context(start)
    results = context.Queue()
    arguments = (make_cache(timeout_s=5), server.url("/a.tar"), len(BODY), BODY, results)
    processes = [context.Process(target=work, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    assert all(results.get(timeout=20) for _ in processes)
    for process in processes:
        process.join()
    assert server.requests["/a.tar"] == 1


def test_a_killed_download_leaves_nothing_broken(server, make_cache):
    server.fail("/a.tar", Stall(100_000, 30))
    cache, url = make_cache(timeout_s=20), server.url("/a.tar")
    process = multiprocessing.get_context("fork").Process(target=cache.fetch, args=(url, len(BODY)))
    process.start()
    part = cache.folder / f"part-{cache.path(url).name}"
    wait_for(lambda: part.exists() and part.read_bytes()[:100_000] == BODY[:100_000])
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
    assert read(cache, url, len(BODY)) == BODY, "the other one waits, and takes over"
    process.join()
    assert not part.exists() and server.requests["/a.tar"] == 2


def test_what_a_killed_download_left_goes_with_the_next_one(server, make_cache):
    cache = make_cache()
    stale = cache.folder / f"part-{'0' * 16}-b.tar"
    stale.write_bytes(BODY)
    mine = cache.folder / "part-of-mine.txt"
    mine.write_text("not a shard")
    cache.fetch(server.url("/a.tar"), None)
    assert not stale.exists() and mine.exists()


def test_a_child_forked_meanwhile_holds_no_lock(server, make_cache):
    server.fail("/a.tar", Stall(100_000, 30))
    code = """
import os, sys, threading, time
from visllama.data.shards.cache import ShardCache, _HELD
cache = ShardCache(sys.argv[1], timeout_s=20)
threading.Thread(target=cache.fetch, args=(sys.argv[2], None), daemon=True).start()
while not _HELD or not any(os.pread(fd, 9, 0) for fd in _HELD):
    time.sleep(0.01)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""
    cache, url = make_cache(), server.url("/a.tar")
    parent = subprocess.Popen([sys.executable, "-c", code, str(cache.folder), url], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.wait()
        assert read(cache, url, len(BODY)) == BODY
        assert is_running(child), "it was not waited for"
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_what_others_did_between_opening_and_locking_is_seen(server, make_cache, monkeypatch):
    cache, real, steps = make_cache(), os.open, ["fetched", "removed"]

    def open_and_be_overtaken(path, *arguments, **options):
        step = steps.pop(0) if steps and os.path.basename(path).startswith("part-") else None
        if step == "fetched":
            cache.fetch(url, None)  # takes "removed" on its way
        fd = real(path, *arguments, **options)
        if step == "removed":
            assert module._evict(path)
        return fd

    url = server.url("/a.tar")
    monkeypatch.setattr(os, "open", open_and_be_overtaken)
    assert read(cache, url, len(BODY)) == BODY
    assert server.requests["/a.tar"] == 1 and names(cache) == {"a.tar"} and not steps


def test_a_long_wait_is_told(server, make_cache, monkeypatch, caplog):
    monkeypatch.setattr(module, "_TELL_EVERY_S", 0.1)
    server.fail("/a.tar", Stall(1000, 0.8))
    cache, url = make_cache(timeout_s=5), server.url("/a.tar")
    thread = threading.Thread(target=cache.fetch, args=(url, None))
    thread.start()
    wait_for(lambda: server.requests["/a.tar"])
    assert read(cache, url, None) == BODY
    thread.join()
    assert "waiting for another process" in caplog.text and server.requests["/a.tar"] == 1


# ------------------------------------------------------------------------------------------------------------- budget


@pytest.fixture
def shards(server):
    """Return the addresses of shards named 0 to 9, of 1000 bytes."""
    for i in range(10):
        server.files[f"/{i}.tar"] = BODY[i * 1000 : (i + 1) * 1000]
    return [server.url(f"/{i}.tar") for i in range(10)]


def test_the_least_recently_used_go_first(shards, make_cache):
    cache = make_cache(3500)
    for i in (0, 1, 2, 0, 3):
        cache.open(shards[i], 1000).close()
    assert names(cache) == {"0.tar", "2.tar", "3.tar"}
    cache.open(shards[4], None).close()  # the server tells its size
    assert names(cache) == {"0.tar", "3.tar", "4.tar"}


def test_what_was_fetched_ahead_goes_after_what_was_read(shards, make_cache):
    cache = make_cache(2000)
    cache.fetch(shards[0], 1000)
    for i in (1, 2):
        cache.open(shards[i], 1000).close()
    assert names(cache) == {"0.tar", "2.tar"}


def test_what_is_open_stays(shards, make_cache, caplog):
    cache = make_cache(2000)
    with cache.open(shards[0], 1000) as first:
        for i in (1, 2, 3):
            cache.open(shards[i], 1000).close()
        assert names(cache) == {"0.tar", "3.tar"} and not caplog.text
        with cache.open(shards[3], 1000), cache.open(shards[4], 1000), cache.open(shards[5], 1000):
            assert names(cache) == {"0.tar", "3.tar", "4.tar", "5.tar"}
        assert caplog.text.count("data.cache_gib") == 1
        assert first.read() == BODY[:1000]
    cache.fetch(shards[6], 1000)
    assert names(cache) == {"5.tar", "6.tar"}


def hold(cache, url, held, done) -> None:
    with cache.open(url, 1000):
        held.set()
        done.wait()


def test_what_another_process_has_open_stays(shards, make_cache):
    cache, context = make_cache(1000), multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(cache, shards[0], held, done))
    process.start()
    assert held.wait(10)
    cache.fetch(shards[1], 1000)
    assert names(cache) == {"0.tar", "1.tar"}
    done.set()
    process.join()
    cache.fetch(shards[2], 1000)
    assert names(cache) == {"2.tar"}


def test_a_file_being_locked_for_eviction_is_only_waited_for(shards, make_cache):
    cache = make_cache()
    cache.fetch(shards[0], 1000)
    with open(cache.path(shards[0]), "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        assert read(cache, shards[0], 1000) == BODY[:1000]
        time.sleep(0.1)


def test_parallel_downloads_keep_the_budget_together(shards, server, make_cache):
    cache, most = make_cache(3000, timeout_s=5), 0
    for i in range(3):  # at rest before the others begin: what is being downloaded may not be evicted
        cache.fetch(shards[i], 1000)
    for i in range(3, 6):
        server.fail(f"/{i}.tar", Drip(0.005))
    threads = [threading.Thread(target=cache.fetch, args=(shards[i], 1000)) for i in range(3, 6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, sum(info.st_size for _, info in cache._files()))
        time.sleep(0.01)
    assert names(cache) == {"3.tar", "4.tar", "5.tar"} and most <= 3000


# ----------------------------------------------------------------------------------------------------------- prefetch


def test_prefetches_in_order_what_was_asked_for(shards, server, make_cache):
    cache = make_cache(attempts=1)
    server.fail("/1.tar", Status(404))
    thread = cache.prefetch((url, 1000) for url in shards[:4])
    thread.join(10)
    assert [path for path, _ in server.log] == [f"/{i}.tar" for i in range(4)]
    assert names(cache) == {"0.tar", "2.tar", "3.tar"}
    assert list(thread.errors) == [shards[1]] and "404" in str(thread.errors[shards[1]])
    assert read(cache, shards[1], 1000) == BODY[1000:2000], "whoever opens it tries again"


def test_prefetches_no_further_than_the_budget(shards, server, make_cache):
    cache = make_cache(3000)
    thread = cache.prefetch((url, 1000) for url in shards)
    wait_for(lambda: cache.has(shards[2], 1000))
    time.sleep(0.3)
    assert names(cache) == {"0.tar", "1.tar", "2.tar"}, "what nobody has read is not evicted for what comes later"
    for i, url in enumerate(shards):
        wait_for(lambda url=url: cache.has(url, 1000))
        assert read(cache, url, 1000) == BODY[i * 1000 : (i + 1) * 1000]
    thread.join(10)
    assert not thread.is_alive() and not thread.errors and all(server.requests[f"/{i}.tar"] == 1 for i in range(10))


def test_prefetching_can_be_stopped(shards, server, make_cache):
    server.fail("/0.tar", Stall(500, 30))
    cache = make_cache(1000, timeout_s=0.5)
    thread = cache.prefetch([(shards[0], 1000), (shards[1], 1000)])
    wait_for(lambda: server.requests["/0.tar"])
    thread.stop(5)
    assert not thread.is_alive() and not server.requests["/1.tar"]
    waiting = make_cache(1000).prefetch((url, 1000) for url in shards)
    wait_for(lambda: cache.has(shards[0], 1000))
    waiting.stop(5)
    assert not waiting.is_alive() and len(names(cache)) == 1


def test_can_be_handed_to_a_spawned_worker(make_cache):
    assert pickle.loads(pickle.dumps(make_cache(5))).budget_bytes == 5  # noqa: S301 - our own
