"""Raw datasets made on the fly and laid out, and what was prepared of them, read back through the index."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from PIL import Image

from visllama.data.record import image_suffixes, read_text
from visllama.data.shards.index import ShardIndex
from visllama.data.shards.manifest import Manifest
from visllama.prepare.layout import SplitLayout, lay_out
from visllama.prepare.raw import ImageFolder, RawRecord, RawSplit


def picture(shade: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade % 256, shade // 256, 0)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | list | dict) -> Path:
    """Write a file; a list or dict as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, (list, dict)) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(tmp_path, rows: int = 3) -> Path:
    """Write a table of captions, and the pictures that it names to `images`."""
    for number in range(rows):
        put(tmp_path / "images" / f"{number}.jpg", picture(number))
    return put(tmp_path / "t.csv", "image,caption\n" + "".join(f"{n}.jpg,number {n}\n" for n in range(rows)))


def plan(tmp_path, count: int = 40, shard_bytes: float = 20_000, bad: tuple[int, ...] = ()) -> SplitLayout:
    """Lay out a split of pictures with a caption each; the bad ones break off after three bytes."""
    split = RawSplit()
    for number in range(count):
        name = f"{number}.jpg"
        if not (tmp_path / "images" / name).exists():
            put(tmp_path / "images" / name, b"\xff\xd8\xff" if number in bad else picture(number))
        split.add(RawRecord(f"{number:08d}", ((name,),), {"captions": [f"number {number}"]}, f"row {number}"))
    return lay_out(split, ImageFolder([tmp_path / "images"]), shard_bytes)


def read(folder: Path) -> dict[str, tuple[list, list[bytes]]]:
    """Return each record of a split by its key: its text's items and its images' bytes."""
    manifest, found = Manifest.parse(str(folder), (folder / "manifest.json").read_bytes()), {}
    assert manifest.faults == {}
    for number in range(len(manifest.names)):
        index = ShardIndex.load(Path(manifest.index(number)))
        tar = Path(manifest.shard(number)).read_bytes()
        for row in range(index.num_records):
            members = index.members(row)
            contents = {suffix: tar[m.offset : m.offset + m.size] for suffix, m in members.items()}
            images = [contents[suffix] for suffix in image_suffixes(contents)]
            key = index.key(row)
            assert key not in found
            found[key] = (
                read_text({n: contents[n] for n in ("json", "txt") if n in contents}, len(images)).items,
                images,
            )
    return found


def skipped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every tar below a folder."""
    tars = sorted(folder.rglob("*.tar"))
    return {str(tar.relative_to(folder)): hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars}
