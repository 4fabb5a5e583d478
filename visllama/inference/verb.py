"""The verb `caption`: write captions for pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from visllama.config.dry_run import check_decoding, check_machine
from visllama.config.schema import CaptionConfig
from visllama.console import say
from visllama.errors import ConfigError
from visllama.images.decode import SUFFIXES
from visllama.inference.pipeline import load
from visllama.machine.devices import find_precision, frozen_dtype


def assemble(config: CaptionConfig) -> list[Path]:
    """Find the pictures, and try the machine and the decoding.

    Raises:
        ConfigError: If there are no pictures there, or the machine or the decoding is none.
    """
    check_machine(config.trainer)
    check_decoding(config.decoding)
    return find_pictures(config.images if isinstance(config.images, list) else [config.images])


def caption(config: CaptionConfig, paths: Sequence[Path]) -> list[dict]:
    """Caption pictures by `weights`: a table for a person, or JSON alone."""
    torch.set_num_threads(config.trainer.threads)
    torch.manual_seed(config.seed)
    dtype = frozen_dtype(find_precision(config.trainer.precision, config.trainer.accelerator))
    pipeline = load(config.weights, config.plugins, config.paths["models"], config.trainer.accelerator, dtype)
    pipeline.batch_size = config.batch_size
    captions = pipeline.caption(paths, **config.decoding)
    rows = [{"image": str(path), "caption": text} for path, text in zip(paths, captions, strict=True)]
    if config.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return rows
    table = Table("image", "caption", show_lines=len(rows) > 1)
    for row in rows:
        table.add_row(escape(row["image"]), escape(row["caption"]))
    say(table, "json=true prints this for another program.")
    return rows


def find_pictures(names: list) -> list[Path]:
    """Return the picture files that paths and folders name.

    Raises:
        ConfigError: If one is not there, or a folder holds none.
    """
    found: list[Path] = []
    for path in (Path(str(name)).expanduser() for name in names):
        if path.is_dir():
            pictures = sorted(p for p in path.iterdir() if p.suffix.lower().lstrip(".") in SUFFIXES)
            if not pictures:
                raise ConfigError(f"images={path}: the folder holds no {', '.join(SUFFIXES)}")
            found += pictures
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"images={path}: no such file or folder")
    return found
