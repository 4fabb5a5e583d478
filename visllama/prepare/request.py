"""What to download, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Download:
    """What to download, and how.

    Args:
        name: The name of the dataset; its folder below `paths.data` has it.
        list: A TSV (caption, URL, no header), a parquet file, or a folder of parquet files.
        out: The folder of the shards; all other files lie in its folder `_download`.
        image_size_px: The size to which img2dataset scales images.
        resize_mode: The way in which it scales them, in its own words.
        resize_only_if_bigger: Leave smaller images as they are.
        skip_reencode: Keep an image's own bytes where it is not scaled.
        encode_quality: The quality of the JPEGs that are written.
        min_image_size_px: The smallest image that is kept.
        max_aspect_ratio: The largest ratio of an image's sides that is kept; None keeps every image.
        samples_per_shard: The number of URLs of a shard.
        url_column: The column of the parquet files that holds the URL.
        caption_column: The column of the parquet files that holds the caption.
        score_columns: The columns of the parquet files that each record's JSON keeps.
        allow_private: Let URLs name hosts of one's own network.
        part: `3/64` takes the third of 64 slices, for a job array; None takes everything, and merges it at once.
        processes: The number of img2dataset's processes.
        threads: The number of threads of each process.
        timeout_s: The seconds after which a URL is given up.
        retries: The number of further attempts for a URL.
        max_shard_retries: The number of further attempts for a shard.
        distributor: multiprocessing, pyspark or ray; only the flag is passed on: setting up a cluster is up to the
            user.
        command: The `img2dataset` command.
        min_success: The share of the URLs that have to give an image; with fewer the result is refused.
    """

    name: str
    list: str
    out: Path
    image_size_px: int = 256
    resize_mode: str = "keep_ratio"
    resize_only_if_bigger: bool = True
    skip_reencode: bool = False
    encode_quality: int = 95
    min_image_size_px: int = 0
    max_aspect_ratio: float | None = None
    samples_per_shard: int = 10_000
    url_column: str = "url"
    caption_column: str = "text"
    score_columns: tuple[str, ...] = ()
    allow_private: bool = False
    part: str | None = None
    processes: int = 16
    threads: int = 64
    timeout_s: int = 10
    retries: int = 1
    max_shard_retries: int = 3
    distributor: str = "multiprocessing"
    command: str = field(default_factory=lambda: os.environ.get("VISLLAMA_IMG2DATASET", "img2dataset"))
    min_success: float = 0.5
