"""The sources of `prepare` and the keys of each, held to before anything is read; nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from visllama.config.schema import PrepareSchema
from visllama.errors import ConfigError, require
from visllama.prepare.adopt import Shards, find
from visllama.prepare.coco import Coco
from visllama.prepare.folder import Folder
from visllama.prepare.instruct import Instruct
from visllama.prepare.raw import SPLITS, RawData
from visllama.prepare.request import Download
from visllama.prepare.url_list import read_part
from visllama.prepare.vqa import Vqa
from visllama.signatures import matches_hint, wrong_type

RAW: dict[str, type[RawData]] = {"coco": Coco, "vqa": Vqa, "instruct": Instruct, "folder": Folder}
LISTS = ("cc3m", "coyo")
_CALLS = {
    "coco": "images=DIR captions=FILE",
    "vqa": "questions=FILE annotations=FILE images=DIR",
    "instruct": "conversations=FILE [images=DIR]",
    "folder": "images=DIR table=FILE.csv",
    "shards": "from=PATH_OR_PATTERN",
    "cc3m": "list=FILE.tsv",
    "coyo": "list=DIR",
    "scenes": "out=DIR",
}
"""What each source needs to be given."""
_MOST_WORKERS = 1024


def hints(source: str) -> dict[str, Any]:
    """Give the keys of a source with their types; those of every verb are not among them."""
    if source in RAW:
        return get_type_hints(RAW[source])
    if source == "shards":
        return get_type_hints(Shards) | {"from": str}
    if source in LISTS:
        found = get_type_hints(Download) | {"split": str, "merge": bool, "check_only": bool}
        del found["out"]  # which the verb's own, with name and split, makes
        return found
    return {"threads": int, "prepare": Mapping}


def arguments(cfg: DictConfig) -> dict[str, Any]:
    """Give the values of the source's own keys."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {key: plain[key] for key in hints(cfg.source)}


def given(cfg: DictConfig) -> RawData | Shards | Download:
    """Make the source's description of what is wanted, out of its keys; `scenes` has none."""
    values = arguments(cfg)
    if cfg.source in RAW:
        return RAW[cfg.source](**values)
    if cfg.source == "shards":
        del values["from"]
        return Shards(**values)
    for key in ("merge", "check_only", "split"):
        del values[key]
    columns = tuple(values.pop("score_columns"))
    return Download(**values, score_columns=columns, out=split_folder(cfg, cfg.split))


def split_folder(cfg: DictConfig, split: str) -> Path:
    """Give the folder of a split's shards."""
    return Path(cfg.out or Path(cfg.paths.data) / cfg.name).expanduser() / split


def check_prepare(cfg: DictConfig) -> None:
    """Refuse wrong keys, values and files before anything is read or written.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    source = cfg.source
    call = f"visllama prepare source={source} {_CALLS.get(source, '')}".strip()
    require(source in _CALLS, f"source={source}: choose from {', '.join(_CALLS)}")
    known = hints(source)
    own = set(PrepareSchema.__dataclass_fields__)
    for key in cfg:
        if key not in known and key not in own:
            close = get_close_matches(str(key), [*known, *own], 1)
            hint = f"did you mean {close[0]}?" if close else f"here are {', '.join(known)}"
            raise ConfigError(f"{key}: source={source} has no such key, and nothing would read it; {hint}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    require(not missing, f"no value for {', '.join(missing)}: {call}")
    absent = sorted(key for key in known if key not in cfg)
    require(not absent, f"no value for {', '.join(absent)}: a key of source={source} was taken away")
    require(cfg.name is not None or source == "shards", f"name=null: source={source} needs a name, of a folder")
    for key, value in arguments(cfg).items():
        require(matches_hint(value, known[key]), wrong_type(key, value, known[key]))
    require(
        cfg.name is None or re.fullmatch(r"[A-Za-z0-9_][\w.-]*", cfg.name, re.ASCII) is not None,
        f"name={cfg.name}: letters, digits, _, - and . make a name: it becomes a folder's",
    )
    workers = cfg.get("workers")
    require(
        workers is None or 0 < workers <= _MOST_WORKERS,
        f"workers={workers}: must be from 1 to {_MOST_WORKERS}, or null",
    )
    if source == "scenes":
        require(cfg.threads > 0, f"threads={cfg.threads}: must be more than 0")
    elif source in LISTS:
        _check_list(cfg)
    else:
        _check_out(cfg)
        given(cfg).check()
        if source == "shards":
            find(cfg["from"])


def _check_list(cfg: DictConfig) -> None:
    _check_out(cfg)
    require(cfg.split in SPLITS, f"split={cfg.split}: choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    require(Path(cfg.list).expanduser().exists(), f"list={cfg.list}: no such file or folder")
    read_part(cfg.part)
    for key in ("image_size_px", "samples_per_shard", "processes", "threads", "timeout_s"):
        require(cfg[key] > 0, f"{key}={cfg[key]}: must be more than 0")
    require(0 <= cfg.min_success <= 1, f"min_success={cfg.min_success}: must be in [0, 1]")


def _check_out(cfg: DictConfig) -> None:
    """Refuse a place that is, or lies below, a file."""
    key, place = ("out", cfg.out) if cfg.out else ("paths.data", cfg.paths.data)
    above = Path(place).expanduser()
    while not above.exists() and above != above.parent:
        above = above.parent
    require(above.is_dir(), f"{key}={place}: {above} is a file: give another folder")
