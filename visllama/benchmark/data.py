"""What loading, the index and the order cost, beside webdataset, bare decoding, and Python's `tarfile`."""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil

from visllama.benchmark.figures import Figure, faster, time_in_turns
from visllama.benchmark.scale import measure_order, write_manifest
from visllama.data.collate import Collator
from visllama.data.datamodule import StepLoader, TrainingSamples
from visllama.data.order import Order
from visllama.data.samples import SampleMaker
from visllama.data.shards.index import index_shard
from visllama.data.shards.source import ShardSource
from visllama.images import decode as images
from visllama.images.transform import ImageTransform
from visllama.model.locate import locate

NUM_IMAGE_TOKENS, MAX_TEXT_TOKENS, BATCH_SIZE = 10, 256, 32
WIDTH_PX, HEIGHT_PX, SIZE_PX = 640, 480, 224
_OCTAVES = ((4, 40.0), (10, 25.0), (24, 16.0), (60, 10.0), (150, 7.0), (WIDTH_PX, 4.0))
"""Cells across, and how strongly they differ: as in a photo, the finer the less."""
_NUM_SHARDS = 4


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        images: Loaded in a round, a multiple of the batch.
        loading_rounds, index_rounds: How often each runs.
        records: Of the shard that is indexed.
        shards: Of the manifest whose order is measured.
        starts: How often that is.
    """

    images: int
    loading_rounds: int
    records: int
    index_rounds: int
    shards: int
    starts: int


SIZES = {
    "small": Size(images=64, loading_rounds=9, records=1000, index_rounds=9, shards=70_000, starts=3),
    "full": Size(images=256, loading_rounds=25, records=4000, index_rounds=25, shards=70_000, starts=7),
}


def measure(size: str, seed: int) -> tuple[list[Figure], dict[str, object]]:
    """Measure all there is about data; gives the figures, and what they rest on."""
    chosen, threads = SIZES[size], torch.get_num_threads()
    torch.set_num_threads(1)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    try:
        with tempfile.TemporaryDirectory(prefix="visllama-benchmark-") as name, Progress(
            *columns, transient=True
        ) as progress:  # fmt: skip
            folder = Path(name)
            photos = [make_photo(seed + i) for i in progress.track(range(chosen.images), description="making photos")]
            figures = [
                *_loading(folder / "loading", photos, chosen, seed, progress),
                *_index(folder / "index", photos, chosen, progress),
                *_order(folder / "order", chosen, seed, progress),
            ]
    finally:
        torch.set_num_threads(threads)
    packages = ("torch", "transformers", "pillow", "webdataset", *(("simplejpeg",) if images.simplejpeg else ()))
    facts = {"measured": chosen._asdict(), "bytes_a_photo": sum(map(len, photos)) // len(photos)}
    return figures, facts | {"packages": {package: version(package) for package in packages}}


# ---------------------------------------------------------------------------------------------------- what is loaded


def make_photo(seed: int) -> bytes:
    """Make a JPEG (quality 90, 4:2:0) that costs what a photo does: noise that is coarse more than fine."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((1, 3, HEIGHT_PX, WIDTH_PX), 128.0)
    for across, strength in _OCTAVES:
        shape = (across * HEIGHT_PX // WIDTH_PX, across)
        light, colour = (torch.randn(1, n, *shape, generator=generator) for n in (1, 3))
        pixels += strength * F.interpolate(light + 0.4 * colour, pixels.shape[2:], mode="bicubic")
    array = pixels[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg", quality=90, subsampling="4:2:0")
    return file.getvalue()


def _write_shard(path: Path, photos: Sequence[bytes], first: int) -> None:
    path.parent.mkdir(exist_ok=True)
    captions = [f"a {size} red circle is to the left of a small blue square" for size in ("small", "large")]
    with webdataset.TarWriter(str(path)) as tar:
        for number, photo in enumerate(photos, first):
            text = {"captions": captions, "width": WIDTH_PX, "height": HEIGHT_PX, "id": number}
            tar.write({"__key__": f"{number:09d}", "jpg": photo, "json": json.dumps(text).encode()})


# ---------------------------------------------------------------------------------------------------- loading


def _loading(folder: Path, photos: Sequence[bytes], size: Size, seed: int, progress: Progress) -> list[Figure]:
    for shard in range(_NUM_SHARDS):
        begin, end = (len(photos) * i // _NUM_SHARDS for i in (shard, shard + 1))
        _write_shard(folder / f"{shard:05d}.tar", photos[begin:end], begin)
    processor = CLIPImageProcessorPil()
    ours, theirs = _our_loader(folder, processor, seed), _webdataset(folder, processor)
    jobs = {"ours": ours, "webdataset": theirs, "bare": partial(_bare, photos, _decode_by_pillow)}
    if images.simplejpeg:
        jobs |= {"ours_pillow": _without_simplejpeg(ours), "bare_pillow": jobs["bare"]}
        jobs["bare"] = partial(_bare, photos, images.simplejpeg.decode_jpeg)
    task = progress.add_task("loading", total=len(jobs) * (size.loading_rounds + 1))
    spent = time_in_turns(jobs, size.loading_rounds, partial(progress.advance, task))

    decoder = "simplejpeg" if images.simplejpeg else "Pillow"
    labels = {
        "ours": f"visllama ({decoder})",
        "webdataset": "webdataset, CLIPImageProcessorPil",
        "bare": f"bare decoding ({decoder})",
        "ours_pillow": "visllama (Pillow)",
        "bare_pillow": "bare decoding (Pillow)",
    }
    ratios = [
        ("over_webdataset", "visllama / webdataset", "ours", "webdataset", 2.2),
        ("over_bare", "visllama / bare decoding", "ours", "bare", 0.75),
    ]
    if images.simplejpeg:
        ratios += [
            ("pillow_over_webdataset", "visllama / webdataset, both Pillow", "ours_pillow", "webdataset", None),
            ("pillow_over_bare", "visllama / bare, both Pillow", "ours_pillow", "bare_pillow", None),
        ]
    figure = partial(Figure, f"Loading {WIDTH_PX}x{HEIGHT_PX} JPEG, to {SIZE_PX} px")
    return [
        *(figure(f"loading_{job}", labels[job], 1 / median(spent[job]), "images/s") for job in jobs),
        *(
            figure(f"loading_{name}", label, faster(spent[a], spent[b]), "x", least)
            for name, label, a, b, least in ratios
        ),
    ]


def _our_loader(folder: Path, processor: CLIPImageProcessorPil, seed: int) -> Callable[[], int]:
    """Load by what training uses, from the shards to batches."""
    source = ShardSource("train", str(folder), val_fraction=None)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    transform = ImageTransform.from_processor(processor)
    maker = SampleMaker(tokenizer, transform, NUM_IMAGE_TOKENS, MAX_TEXT_TOKENS, "")
    order = Order({"shards": source.shard_items}, {"shards": 1.0}, BATCH_SIZE, seed)
    samples = TrainingSamples({"shards": source}, {"shards": maker}, order)
    collator = Collator(0, NUM_IMAGE_TOKENS, transform.size_px, BATCH_SIZE)

    def load() -> int:
        loader = StepLoader(samples, {}, collator, len(source) // BATCH_SIZE, num_workers=0, rank=0, num_ranks=1)
        steps = [(step["num_samples"], step["faults"]) for step in loader]
        faults = [fault for _, found in steps for fault in found if fault]
        if faults:  # what is masked costs nothing
            raise RuntimeError(f"records that the benchmark wrote cannot be read: {faults[0]}")
        return sum(count for count, _ in steps)

    return load


def _webdataset(folder: Path, processor: CLIPImageProcessorPil) -> Callable[[], int]:
    """Load as webdataset's own documents do, with the encoder's own processor."""
    shards = [str(tar) for tar in sorted(folder.glob("*.tar"))]

    def load() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
            return sum(len(processor(images=image, return_tensors="pt")["pixel_values"]) for image, _ in pipeline)

    return load


def _bare(photos: Sequence[bytes], decode: Callable[[bytes], np.ndarray]) -> int:
    """Decode, resize and crop what is in memory, and nothing else: no loader is faster."""
    for photo in photos:
        _shorten(torch.from_numpy(decode(photo)).permute(2, 0, 1))
    return len(photos)


def _shorten(pixels: Tensor) -> Tensor:
    width = SIZE_PX * WIDTH_PX // HEIGHT_PX
    resized = F.interpolate(pixels[None], (SIZE_PX, width), mode="bicubic", antialias=True)[0]
    left = (width - SIZE_PX) // 2
    return resized[:, :, left : left + SIZE_PX].contiguous()


def _decode_by_pillow(photo: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(photo)).convert("RGB"))


def _without_simplejpeg(load: Callable[[], int]) -> Callable[[], int]:
    def run() -> int:
        with _pillow_alone():
            return load()

    return run


@contextmanager
def _pillow_alone() -> Iterator[None]:
    found, images.simplejpeg = images.simplejpeg, None
    try:
        yield
    finally:
        images.simplejpeg = found


# ---------------------------------------------------------------------------------------------------- index


def _index(folder: Path, photos: Sequence[bytes], size: Size, progress: Progress) -> list[Figure]:
    tar = folder / "00000.tar"
    _write_shard(tar, [photos[i % len(photos)] for i in range(size.records)], 0)
    jobs = {
        "ours": lambda: index_shard(tar).num_records,
        "tarfile": lambda: _walk(tar, reads_text=False),
        "tarfile_text": lambda: _walk(tar, reads_text=True),
    }
    task = progress.add_task("indexing", total=len(jobs) * (size.index_rounds + 1))
    spent = time_in_turns(jobs, size.index_rounds, partial(progress.advance, task))
    sidecar = tar.with_name(f"{tar.name}.idx")
    index_shard(tar).save(sidecar)
    labels = "visllama (headers, texts)", "tarfile (headers)", "tarfile (headers, texts)"
    figure = partial(Figure, f"Indexing a shard of {size.records:,} records")
    rates = [
        figure(f"index_{job}", label, 1 / median(spent[job]), "records/s")
        for job, label in zip(jobs, labels, strict=True)
    ]
    over_both, over_headers = (faster(spent["ours"], spent[other]) for other in ("tarfile_text", "tarfile"))
    return [
        *rates,
        figure("index_over_tarfile_text", "visllama / tarfile (headers, texts)", over_both, "x", 3),
        figure("index_over_tarfile", "visllama / tarfile (headers)", over_headers, "x", 3),
        figure("index_sidecar", "sidecar", sidecar.stat().st_size / size.records, "bytes/record"),
    ]


def _walk(tar: Path, reads_text: bool) -> int:
    count = 0
    with tarfile.open(tar, "r:") as file:
        for member in file:
            if member.name.endswith(".json"):
                count += 1
                if reads_text:
                    json.load(file.extractfile(member))
    return count


# ---------------------------------------------------------------------------------------------------- order


def _order(folder: Path, size: Size, seed: int, progress: Progress) -> list[Figure]:
    folder.mkdir()
    write_manifest(folder, size.shards, seed)
    task = progress.add_task("order", total=size.starts)
    found = []
    for _ in range(size.starts):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(measure_order, folder, seed).result())
        progress.advance(task)
    middle = {name: median(f[name] for f in found) for name in found[0]}
    figure = partial(Figure, f"Order of {size.shards:,} shards")
    return [
        figure("order_start", "start, reading the manifest", middle["start"], "s", most=2),
        figure("order_jump", "jump to a far batch, one rank", middle["jump"], "s", most=0.3),
        figure("order_jump_of_8", "jump to a far batch, one rank of 8", middle["jump_of_8"], "s", most=0.3),
        figure("order_after", "a sample afterwards", 1e6 * middle["after"], "us", most=20),
        figure("order_memory", "memory", middle["memory_mb"], "MB", most=100),
    ]
