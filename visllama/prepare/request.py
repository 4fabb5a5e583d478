"""What to download, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Download:
    """What to download, and how.

    Args:
        list: A TSV (caption, URL, no header), a parquet file, or a folder of them.
        out: Where the shards go; all else lies in its `_download`.
        score_columns: Columns of the parquet files that each record's JSON keeps.
        part: `3/64` takes the third of 64 slices, for a job array; None is everything, merged at once.
        distributor: multiprocessing, pyspark or ray: only the flag is passed, the cluster is the user's to set up.
        min_success: Share of the URLs below which the result is refused.
        allow_private: Let URLs name hosts of one's own network.
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
