"""The settings of a download: which list of URLs, and how img2dataset makes shards of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Download:
    """Which list of URLs to download, and how img2dataset makes shards of it; no value is checked here.

    Args:
        name: The name of the dataset, which is also that of its folder below `paths.data`. It is only recorded: `out`
            says where the shards go.
        list: The path of a TSV (caption, tab, URL; no header), of a parquet file, or of a folder of parquet files.
        out: The folder that the shards are written to; all other files lie in its folder `_download`.
        image_size_px: The size to which img2dataset scales images, its option `--image_size`.
        resize_mode: The way in which img2dataset scales images, its option `--resize_mode`.
        resize_only_if_bigger: Whether images that are smaller than `image_size_px` are left as they are.
        skip_reencode: Whether an image that is not scaled keeps its own bytes, in place of being written as JPEG anew.
        encode_quality: The quality of the JPEGs that are written, up to 100.
        min_image_size_px: The smallest size of an image that is kept, img2dataset's option `--min_image_size`.
        max_aspect_ratio: The largest ratio of an image's longer to its shorter side that is kept; None keeps all.
        samples_per_shard: The number of URLs that make up a shard; those that fail leave it with fewer records.
        url_column: The column of the parquet files that holds the URL. A TSV has no names of columns.
        caption_column: The column of the parquet files that holds the caption.
        score_columns: The columns of the parquet files that are copied to the JSON of each record; empty for a TSV.
        allow_private: Whether URLs may name hosts of one's own network.
        part: "3/64" takes the third of 64 slices of the list, for a job array; None takes everything, and merges it at
            once.
        processes: The number of processes that img2dataset starts.
        threads: The number of threads, each with one download at a time, in each process.
        timeout_s: The number of seconds after which a URL is given up.
        retries: The number of further attempts for a URL that has failed.
        max_shard_retries: The number of further attempts for a shard that has failed.
        distributor: How img2dataset shares out its work: "multiprocessing", "pyspark" or "ray". Only the option is
            passed on; a cluster has to be set up by the user.
        command: The name or the path of the `img2dataset` command.
        min_success: The share of the URLs, from 0 to 1, that have to give an image; with fewer the part is refused.
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
