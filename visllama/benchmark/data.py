"""Measure what the data pipeline costs: loading images, indexing a shard, and finding samples in their random order.

Loading is measured beside webdataset and beside decoding without any loader; indexing beside Python's `tarfile`.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import numpy as np
import torch
import webdataset
from jaxtyping import UInt8
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

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

NUM_IMAGE_TOKENS = 10
"""The number of positions that an image takes up in a sample, without the two that surround it."""
MAX_TEXT_TOKENS = 256
BATCH_SIZE = 32
WIDTH_PX = 640
"""The width of the JPEG photos that are loaded."""
HEIGHT_PX = 480
"""The height of the JPEG photos that are loaded."""
SIZE_PX = 224
"""The width and the height of the images that CLIP gets."""
_OCTAVES = ((4, 40.0), (10, 25.0), (24, 16.0), (60, 10.0), (150, 7.0), (WIDTH_PX, 4.0))
"""Pairs of the number of cells across the image, and how strongly they differ: fine cells less, as in a photo."""
_NUM_SHARDS = 4


class Size(NamedTuple):
    """How much the benchmark measures.

    Attributes:
        images: The number of images that each job loads in a round; it must be a multiple of `BATCH_SIZE`.
        loading_rounds: The number of timed rounds of loading.
        records: The number of records of the shard that is indexed.
        index_rounds: The number of timed rounds of indexing.
        shards: The number of shards in the manifest from which the order is set up.
        starts: The number of new processes in which the order is measured; the median over them is taken.
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
"""How much is measured, by the value of the key `size`."""


def measure(size: str, seed: int) -> tuple[list[Figure], dict[str, object]]:
    """Measure what it costs to load images, to index a shard, and to find samples in their order, each in one thread.

    Photos and shards are made in a temporary folder, which is removed at the end; progress bars are shown meanwhile.

    Args:
        size: A key of `SIZES`: "small" or "full".
        seed: The seed of the photos and of the order.

    Returns:
        The results, in the order in which they were measured, and the facts that they depend on: `measured` (the
        numbers of `SIZES[size]`), `bytes_a_photo` (mean size of a JPEG), and `packages` (versions by package name).

    Raises:
        KeyError: If `size` is no key of `SIZES`.
    """
    chosen_size = SIZES[size]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
    )

    # The others have one thread too, so that the seconds of all are comparable.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="visllama-benchmark-") as name,
            Progress(*columns, transient=True) as progress,
        ):
            folder = Path(name)
            seeds = range(seed, seed + chosen_size.images)
            tracked_seeds = progress.track(seeds, description="making photos")
            photos = [make_photo(photo_seed) for photo_seed in tracked_seeds]
            figures = [
                *_loading(folder / "loading", photos, chosen_size, seed, progress),
                *_index(folder / "index", photos, chosen_size, progress),
                *_order(folder / "order", chosen_size, seed, progress),
            ]
    finally:
        torch.set_num_threads(num_threads)

    packages = ["torch", "transformers", "pillow", "webdataset"]
    if images.simplejpeg:
        packages.append("simplejpeg")
    num_bytes = sum(len(photo) for photo in photos)
    facts: dict[str, object] = {
        "measured": chosen_size._asdict(),
        "bytes_a_photo": num_bytes // len(photos),
        "packages": {package: version(package) for package in packages},
    }
    return figures, facts


# ---------------------------------------------------------------------------------------------------- what is loaded


def make_photo(seed: int) -> bytes:
    """Make a JPEG file of noise, 640 x 480, that is as costly to decode as a photo, and return its bytes.

    The noise is coarse more than fine, as a photo is. The JPEG has quality 90 and colour subsampling 4:2:0.

    Args:
        seed: The seed of the noise: the same seed makes the same picture.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((1, 3, HEIGHT_PX, WIDTH_PX), 128.0)
    for across, strength in _OCTAVES:
        down = across * HEIGHT_PX // WIDTH_PX
        light = torch.randn(1, 1, down, across, generator=generator)
        colour = torch.randn(1, 3, down, across, generator=generator)
        # In a photo the channels differ less than light and dark do.
        cells = light + 0.4 * colour
        pixels += strength * F.interpolate(cells, (HEIGHT_PX, WIDTH_PX), mode="bicubic")

    channels_last = pixels[0].permute(1, 2, 0)
    array = channels_last.clamp(0, 255).byte().contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg", quality=90, subsampling="4:2:0")
    return file.getvalue()


def _write_shard(path: Path, photos: Sequence[bytes], first: int) -> None:
    """Write a shard (a tar) of photos with two captions each; the records are numbered from `first`."""
    path.parent.mkdir(exist_ok=True)
    captions = [
        "a small red circle is to the left of a small blue square",
        "a large red circle is to the left of a small blue square",
    ]
    with webdataset.TarWriter(str(path)) as tar:
        for number, photo in enumerate(photos, first):
            text = {"captions": captions, "width": WIDTH_PX, "height": HEIGHT_PX, "id": number}
            content = json.dumps(text).encode()
            record = {"__key__": f"{number:09d}", "jpg": photo, "json": content}
            tar.write(record)


# ---------------------------------------------------------------------------------------------------- loading


def _loading(folder: Path, photos: Sequence[bytes], size: Size, seed: int, progress: Progress) -> list[Figure]:
    """Measure loading: ours, webdataset's, and decoding without any loader."""
    num_photos = len(photos)
    for shard in range(_NUM_SHARDS):
        begin = num_photos * shard // _NUM_SHARDS
        end = num_photos * (shard + 1) // _NUM_SHARDS
        _write_shard(folder / f"{shard:05d}.tar", photos[begin:end], begin)

    # Where simplejpeg is installed we decode by it; what Pillow does is then measured beside it.
    processor = CLIPImageProcessorPil()
    ours = _our_loader(folder, processor, seed)
    jobs = {
        "ours": ours,
        "webdataset": _webdataset(folder, processor),
        "bare": partial(_bare, photos, _decode_by_pillow),
    }
    if images.simplejpeg:
        jobs |= {"ours_pillow": _without_simplejpeg(ours), "bare_pillow": jobs["bare"]}
        jobs["bare"] = partial(_bare, photos, images.simplejpeg.decode_jpeg)

    # Each runs once more than it is timed.
    num_runs = len(jobs) * (size.loading_rounds + 1)
    task = progress.add_task("loading", total=num_runs)
    spent = time_in_turns(jobs, size.loading_rounds, partial(progress.advance, task))

    decoder = "simplejpeg" if images.simplejpeg else "Pillow"
    labels = {
        "ours": f"visllama ({decoder})",
        "webdataset": "webdataset, CLIPImageProcessorPil",
        "bare": f"bare decoding ({decoder})",
        "ours_pillow": "visllama (Pillow)",
        "bare_pillow": "bare decoding (Pillow)",
    }
    # Name, label, the two jobs, and the least that is asked of their ratio.
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
    figures = []
    for job in jobs:
        images_per_s = 1 / median(spent[job])
        figures.append(figure(f"loading_{job}", labels[job], images_per_s, "images/s"))

    for name, label, job, other, least in ratios:
        ratio = faster(spent[job], spent[other])
        figures.append(figure(f"loading_{name}", label, ratio, "x", least))
    return figures


def _our_loader(folder: Path, processor: CLIPImageProcessorPil, seed: int) -> Callable[[], int]:
    """Return a job that loads as training does, from the shards to batches."""
    source = ShardSource("train", str(folder), val_fraction=None)
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    transform = ImageTransform.from_processor(processor)
    maker = SampleMaker(tokenizer, transform, NUM_IMAGE_TOKENS, MAX_TEXT_TOKENS, "")
    order = Order({"shards": source.shard_items}, {"shards": 1.0}, BATCH_SIZE, seed)
    samples = TrainingSamples({"shards": source}, {"shards": maker}, order)
    collator = Collator(0, NUM_IMAGE_TOKENS, transform.size_px, BATCH_SIZE)

    def load() -> int:
        num_steps = len(source) // BATCH_SIZE
        loader = StepLoader(samples, {}, collator, num_steps, num_workers=0, rank=0, num_ranks=1)
        num_samples = 0
        faults = []
        for step in loader:
            num_samples += step["num_samples"]
            faults += [fault for fault in step["faults"] if fault]

        # A record that is masked would cost nothing, and the figure would be too good.
        if faults:
            raise RuntimeError(f"records that the benchmark wrote cannot be read: {faults[0]}")
        return num_samples

    return load


def _webdataset(folder: Path, processor: CLIPImageProcessorPil) -> Callable[[], int]:
    """Return a job that loads as webdataset's own documentation does, with CLIP's own image processor."""
    shards = [str(tar) for tar in sorted(folder.glob("*.tar"))]

    def load() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
            num_images = 0
            for image, _ in cast(Iterable[tuple[Image.Image, object]], pipeline):
                pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
                num_images += len(pixel_values)
            return num_images

    return load


def _bare(photos: Sequence[bytes], decode: Callable[[bytes], UInt8[np.ndarray, "H W 3"]]) -> int:
    """Decode, resize and crop photos in memory, and nothing else: no loader is faster."""
    for photo in photos:
        # The array has no name here, so that it is freed before the next photo is decoded.
        _shorten(decode(photo))
    return len(photos)


def _shorten(photo: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 S S"]:
    """Return a photo resized to CLIP's size, and cropped to the square in its middle."""
    pixels = torch.from_numpy(photo).permute(2, 0, 1)
    width = SIZE_PX * WIDTH_PX // HEIGHT_PX
    resized = F.interpolate(pixels[None], (SIZE_PX, width), mode="bicubic", antialias=True)
    left = (width - SIZE_PX) // 2
    return resized[0, :, :, left : left + SIZE_PX].contiguous()


def _decode_by_pillow(photo: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a JPEG as an array of height, width and three channels."""
    image = Image.open(io.BytesIO(photo))
    return np.array(image.convert("RGB"))


def _without_simplejpeg(load: Callable[[], int]) -> Callable[[], int]:
    """Return a job as it runs where simplejpeg is not installed."""

    def run() -> int:
        with _pillow_alone():
            return load()

    return run


@contextmanager
def _pillow_alone() -> Generator[None, None, None]:
    """Let `visllama.images.decode` find no simplejpeg inside this context, so that it decodes by Pillow."""
    simplejpeg = images.simplejpeg
    images.simplejpeg = None
    try:
        yield
    finally:
        images.simplejpeg = simplejpeg


# ---------------------------------------------------------------------------------------------------- index


def _index(folder: Path, photos: Sequence[bytes], size: Size, progress: Progress) -> list[Figure]:
    """Measure indexing: ours, and a walk over the shard by Python's `tarfile`."""
    tar = folder / "00000.tar"
    repeated_photos = [photos[i % len(photos)] for i in range(size.records)]
    _write_shard(tar, repeated_photos, first=0)

    jobs = {
        "ours": lambda: index_shard(tar).num_records,
        "tarfile": lambda: _walk(tar, reads_text=False),
        "tarfile_text": lambda: _walk(tar, reads_text=True),
    }
    # Each runs once more than it is timed.
    num_runs = len(jobs) * (size.index_rounds + 1)
    task = progress.add_task("indexing", total=num_runs)
    spent = time_in_turns(jobs, size.index_rounds, partial(progress.advance, task))

    sidecar = tar.with_name(f"{tar.name}.idx")
    index = index_shard(tar)
    index.save(sidecar)
    bytes_a_record = sidecar.stat().st_size / size.records

    # We read the texts too, so that only the second walk of tarfile does as much.
    labels = {
        "ours": "visllama (headers, texts)",
        "tarfile": "tarfile (headers)",
        "tarfile_text": "tarfile (headers, texts)",
    }
    figure = partial(Figure, f"Indexing a shard of {size.records:,} records")
    figures = []
    for job, label in labels.items():
        records_per_s = 1 / median(spent[job])
        figures.append(figure(f"index_{job}", label, records_per_s, "records/s"))

    over_both = faster(spent["ours"], spent["tarfile_text"])
    over_headers = faster(spent["ours"], spent["tarfile"])
    return [
        *figures,
        figure("index_over_tarfile_text", "visllama / tarfile (headers, texts)", over_both, "x", 3),
        figure("index_over_tarfile", "visllama / tarfile (headers)", over_headers, "x", 3),
        figure("index_sidecar", "sidecar", bytes_a_record, "bytes/record"),
    ]


def _walk(tar: Path, reads_text: bool) -> int:
    """Return the number of records of a shard as `tarfile` finds them; `reads_text` parses each record's JSON too."""
    count = 0
    with tarfile.open(tar, "r:") as file:
        for member in file:
            if member.name.endswith(".json"):
                count += 1
                if reads_text:
                    text = file.extractfile(member)
                    assert text is not None  # it is a plain file
                    json.load(text)
    return count


# ---------------------------------------------------------------------------------------------------- order


def _order(folder: Path, size: Size, seed: int, progress: Progress) -> list[Figure]:
    """Measure the order of many shards, each time in a process of its own."""
    folder.mkdir()
    write_manifest(folder, size.shards, seed)

    task = progress.add_task("order", total=size.starts)
    measurements = []
    for _ in range(size.starts):
        # A new process each time: its memory is then that of the order alone.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            future = pool.submit(measure_order, folder, seed)
            measurements.append(future.result())
        progress.advance(task)

    middle = {}
    for name in measurements[0]:
        middle[name] = median(measurement[name] for measurement in measurements)

    figure = partial(Figure, f"Order of {size.shards:,} shards")
    return [
        figure("order_start", "start, reading the manifest", middle["start"], "s", most=2),
        figure("order_jump", "jump to a far batch, one rank", middle["jump"], "s", most=0.3),
        figure("order_jump_of_8", "jump to a far batch, one rank of 8", middle["jump_of_8"], "s", most=0.3),
        figure("order_after", "a sample afterwards", 1e6 * middle["after"], "us", most=20),
        figure("order_memory", "memory", middle["memory_mb"], "MB", most=100),
    ]
