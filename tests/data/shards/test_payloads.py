"""Tars of those who mean harm, through the public door: nothing is run, nothing outside is read, memory stays small.

All of it runs in one process of its own, so that its memory can be measured; each test then reads its part.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.tars import picture

CAPTION = b"words"


class Touch:
    """A pickle of it makes a file where it is loaded."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (head, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("k.jpg", content)
    return buffer.getvalue()


def bomb(size: int) -> bytes:
    """Return zeros of so many bytes, a thousandth of them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size >> 20)) + packer.flush()


def array_of(thing: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([thing], object), allow_pickle=True)
    return buffer.getvalue()


def pictures() -> dict[str, tuple[bytes, str]]:
    """Return each picture that does harm, and why it is refused; "read" if no more of it is unpacked than it shows."""
    webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + (16382).to_bytes(3, "little") * 2
    return {
        "png of 300 MB": (png((b"IDAT", bomb(300 * 2**20))), "read"),
        "png text of 300 MB": (
            png((b"zTXt", b"k\0\0" + bomb(300 * 2**20)), (b"IDAT", zlib.compress(bytes(200)))),
            "image",
        ),
        "gif of 65535": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + bytes(31), "format"),
        "png of 60000": (png((b"IDAT", b""), width=60_000, height=60_000), "pixels"),
        "webp of 16383": (b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp, "image|pixels"),
        "gzip": (gzip.compress(bytes(2**24)), "format"),
        "zip": (zipped(bytes(2**24)), "format"),
        "svg": (b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>', "format"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "format"),
        "no bytes": (b"", "format"),
    }


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


EIGHT_EIB = b"\x80" + (2**63).to_bytes(11, "big")
HEADERS = {
    "member of 8 EiB": (header("k.jpg", EIGHT_EIB), "truncated"),
    "member of 8 EiB less 1": (header("k.jpg", b"\x80" + (2**63 - 1).to_bytes(11, "big")), "truncated"),
    "member of less than none": (header("k.jpg", b"\xff" * 12), "header"),
    "member of -10": (header("k.jpg", b"-0000000010\0"), "header"),
    "pax of 1 GiB": (header("pax", b"%011o\0" % 2**30, b"x"), "truncated"),
    "long name of 8 EiB": (header("name", EIGHT_EIB, b"L"), "truncated"),
    "json of 100 MB": (header("k.json", b"%011o\0" % 10**8), "truncated"),
    "pax size of 8 EiB": (
        header("pax", b"%011o\0" % 28, b"x") + b"28 size=9223372036854775807\n".ljust(512, b"\0") + header("k.jpg", b"0" * 11 + b"\0"),
        "truncated",
    ),
}  # fmt: skip
TEXTS = {
    "yaml": b"!!python/object/apply:os.system ['touch CANARY']",
    "json with a tag": b'{"captions": !!python/object/apply:os.system ["touch CANARY"]}',
    "json of brackets": b"[" * 2**22,
    "json of lists": b"[" + b"[]," * (2**22 // 3 - 2) + b"[]]",
    "json of 100 MB": b" " * 100_000_000,
    "json of objects": b'{"captions": ' + b'{"a":' * 10**5,
    "json of digits": b'{"captions": ["x"], "n": ' + b"9" * 10**6 + b"}",
}
LINKS = {
    "symlink": (tarfile.SYMTYPE, "/etc/passwd"),
    "hardlink": (tarfile.LNKTYPE, "/etc/passwd"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "fifo": (tarfile.FIFOTYPE, ""),
    "sparse": (tarfile.GNUTYPE_SPARSE, ""),
}
NAMES = ("../../x.jpg", "/etc/x.jpg", "..\\..\\x.jpg", "C:\\x.jpg", "a/../../x.jpg", "\x1b]0;x\x07.jpg")
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cls", "py", "yaml")
PATHS = ("pipe:touch CANARY", "pipe:touch CANARY.tar", "file:///etc/passwd", "file:/etc/passwd", "|touch CANARY")
NUMBER = len(pictures()) + len(HEADERS) + len(TEXTS) + len(LINKS) + len(NAMES) + len(PICKLES) + len(PATHS)


def write(path: Path, *files: tuple[str, bytes] | tarfile.TarInfo, first: bytes = b"") -> Path:
    """Write a tar of these behind two records that are good; the second may be taken for a part of the damage."""
    path.parent.mkdir()
    buffer = io.BytesIO()
    good = [
        (f"{key}.{suffix}", content)
        for key in ("good", "next")
        for suffix, content in (("jpg", picture(7)), ("txt", CAPTION))
    ]
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for given in (*good, *files):
            info = given if isinstance(given, tarfile.TarInfo) else tarfile.TarInfo(given[0])
            content = b"" if given is info else given[1]
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    path.write_bytes(buffer.getvalue()[:end] + first + bytes(1024))
    return path


def make(folder: Path, canary: str) -> dict[str, dict]:
    """Write the tars; give each one's path, and what refuses it."""
    cases: dict[str, dict] = {}

    def add(kind: str, name: str, why: str, *files, first: bytes = b"") -> None:
        path = write(folder / f"{len(cases):03d}" / "x.tar", *files, first=first)
        cases[f"{kind}: {name}"] = {"kind": kind, "path": str(path), "why": why}

    touch = Touch(canary)
    for suffix in PICKLES:
        add("pickle", suffix, "suffix", (f"k.{suffix}", array_of(touch) if suffix[:2] == "np" else pickle.dumps(touch)))
    for name, content in TEXTS.items():
        add("text", name, "text", ("k.jpg", picture()), ("k.json", content.replace(b"CANARY", canary.encode())))
    for name, (kind, target) in LINKS.items():
        info = tarfile.TarInfo("k.jpg")
        info.type, info.linkname = kind, target
        add("link", name, "type", info, ("k.txt", CAPTION))
    for name in NAMES:
        add("name", name, "name", (name, picture()))
    for name, (first, why) in HEADERS.items():
        add("header", name, why, first=first)
    for name, (content, why) in pictures().items():
        add("picture", name, why, ("k.jpg", content), ("k.txt", CAPTION))
    for name in PATHS:
        cases[f"path: {name}"] = {"kind": "path", "path": name.replace("CANARY", canary), "why": "ConfigError"}
    return cases


PROGRAM = """
import json, os, sys, time
from visllama.errors import ConfigError
from visllama.errors import BadRecord
from visllama.images.transform import ImageTransform
from visllama.data.shards.source import ShardSource
transform = ImageTransform(32, (0.5,) * 3, (0.5,) * 3)
cases, folder = json.load(open(sys.argv[1])), sys.argv[2]
transform(open(sys.argv[3], "rb").read())  # what is loaded at first use is no growth
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
outside = []
def watch(event, args):
    hostile = event in ("os.system", "os.exec", "subprocess.Popen", "pickle.find_class", "marshal.loads", "socket.connect", "os.posix_spawn")
    if hostile or (event == "open" and "passwd" in str(args[0])):
        outside.append([event, str(args[0])])
sys.addaudithook(watch)
start, found = peak(), {}
for name, case in cases.items():
    before, out = time.perf_counter(), {"faults": {}, "read": [], "bad": []}
    try:
        source = ShardSource("train", case["path"], val_fraction=None, cache=folder)
        out["faults"] = source.faults
        out["listed"] = [[fault.reason, fault.key] for fault in source.reader.index(0).faults]
        for i in range(len(source)):
            try:
                record = source[i]
                transform(record["image"])
                out["read"].append(record["key"])
            except BadRecord as error:
                out["bad"].append([record["key"], error.reason])
    except ConfigError as error:
        out["config"] = str(error)
    out["seconds"], out["mb"] = time.perf_counter() - before, peak() - start
    found[name] = out
print(json.dumps({"found": found, "outside": outside}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("payloads")
    canary = folder / "canary"
    cases = make(folder, str(canary))
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "good.jpg").write_bytes(picture(7))
    names = [str(folder / name) for name in ("cases.json", "cache", "good.jpg")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return {"cases": cases, "canary": canary, **json.loads(done.stdout.splitlines()[-1])}


def test_a_pickle_of_these_tests_does_what_it_is_for(tmp_path):
    pickle.loads(pickle.dumps(Touch(str(tmp_path / "canary"))))  # noqa: S301
    assert (tmp_path / "canary").exists()


def test_nothing_is_run_and_nothing_outside_is_read(run):
    assert len(run["found"]) == NUMBER >= 50 and not run["canary"].exists()
    assert run["outside"] == []


def test_memory_and_time_stay_small(run):
    most = max(run["found"].items(), key=lambda item: item[1]["mb"])
    assert 0 < most[1]["mb"] < 200, most
    slow = {name: out["seconds"] for name, out in run["found"].items() if out["seconds"] > 10}
    assert not slow


@pytest.mark.parametrize("kind", ["pickle", "text", "link", "name", "header"])
def test_each_is_refused_with_its_reason_and_the_good_record_is_read(run, kind):
    for name, case in run["cases"].items():
        if case["kind"] != kind:
            continue
        out = run["found"][name]
        assert out.get("config") is None, (name, out)
        assert out["faults"].get(case["why"]) == 1, (name, out)
        assert out["bad"] == [], (name, out)
        assert out["read"][0] == "good" and {*out["read"]} <= {"good", "next"}, (name, out)


def test_each_picture_is_a_bad_record_with_its_reason(run):
    for name, case in run["cases"].items():
        if case["kind"] == "picture":
            out = run["found"][name]
            assert out["faults"] == {} and out["read"][:2] == ["good", "next"], (name, out)
            if case["why"] == "read":
                assert out["read"][2:] == ["k"] and out["bad"] == [], (name, out)
            else:
                ((key, reason),) = out["bad"]
                assert key == "k" and reason in case["why"].split("|"), (name, out)


def test_each_path_that_is_none_is_said_to_be_one(run):
    for name, case in run["cases"].items():
        if case["kind"] == "path":
            assert case["path"].partition("CANARY")[0].rstrip("/") in run["found"][name]["config"], name
            assert run["found"][name]["read"] == []
