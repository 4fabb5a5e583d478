"""The sources of `prepare`, the keys of each, and the check of their values; nothing here imports torch.

A source says what is prepared: a raw dataset (`RAW`), a list of URLs (`LISTS`), "shards" (tars that are there already),
or "scenes" (the backbones of the embedded world).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from visllama.config.plain import to_dict
from visllama.config.schema import MISSING, PrepareConfig
from visllama.errors import ConfigError, require
from visllama.prepare.adopt import Shards, find
from visllama.prepare.coco import Coco
from visllama.prepare.folder import Folder
from visllama.prepare.instruct import Instruct
from visllama.prepare.pope import Pope
from visllama.prepare.raw import RawData, require_split
from visllama.prepare.request import Download
from visllama.prepare.textvqa import TextVqa
from visllama.prepare.url_list import read_part
from visllama.prepare.vizwiz import VizWiz
from visllama.prepare.vqa import Vqa
from visllama.signatures import matches_hint, wrong_type

RAW: dict[str, type[RawData]] = {
    "coco": Coco,
    "vqa": Vqa,
    "instruct": Instruct,
    "folder": Folder,
    "coco2017": Coco,
    "nocaps": Coco,
    "flickr30k": Coco,
    "okvqa": Vqa,
    "textvqa": TextVqa,
    "vizwiz": VizWiz,
    "pope": Pope,
}
"""The class that reads each raw dataset, by the name of the source."""
LISTS = ("cc3m", "coyo")
"""The sources that are lists of URLs, which have to be downloaded."""
_CALLS = {
    "coco": "images=DIR captions=FILE",
    "vqa": "questions=FILE annotations=FILE images=DIR",
    "instruct": "conversations=FILE [images=DIR]",
    "folder": "images=DIR table=FILE.csv",
    "coco2017": "images=DIR captions=FILE",
    "nocaps": "images=DIR captions=FILE",
    "flickr30k": "images=DIR captions=FILE",
    "okvqa": "questions=FILE annotations=FILE images=DIR",
    "textvqa": "images=DIR annotations=FILE",
    "vizwiz": "images=DIR annotations=FILE",
    "pope": "images=DIR annotations=DIR",
    "shards": "from=PATH_OR_PATTERN",
    "cc3m": "list=FILE.tsv",
    "coyo": "list=DIR",
    "scenes": "out=DIR",
}
"""The keys that each source needs, as the user types them."""
_MOST_WORKERS = 1024


def hints(source: str) -> dict[str, Any]:
    """Return the keys that a source reads, each with the type hint of its value.

    Keys that every verb has, such as `seed` and `paths`, are not among them.

    Args:
        source: A name of a source, one that `check_prepare` accepts. Any unknown name gets the keys of "scenes".
    """
    if source in RAW:
        return get_type_hints(RAW[source])
    if source == "shards":
        return get_type_hints(Shards) | {"from": str}
    if source in LISTS:
        keys = get_type_hints(Download) | {"split": str, "merge": bool, "check_only": bool}
        # The verb makes it from its own `out`, the name and the split.
        del keys["out"]
        return keys
    return {"threads": int, "prepare": Mapping}


def arguments(config: PrepareConfig) -> dict[str, Any]:
    """Return a new dictionary with the value of each key that the source of a configuration reads (see `hints`).

    Raises:
        KeyError: If such a key has no value; `check_prepare` refuses such a configuration.
    """
    values = to_dict(config) | config.keys
    return {key: values[key] for key in hints(config.source)}


def raw_spec(config: PrepareConfig) -> RawData:
    """Return the reader of a raw dataset, made with the values of the configuration; it is not checked here.

    Args:
        config: A configuration whose source is one of `RAW`.
    """
    values = arguments(config)
    return RAW[config.source](**values)


def shards_spec(config: PrepareConfig) -> Shards:
    """Return the keys of `source=shards` as an object, without `from`; the values are not checked here.

    Args:
        config: A configuration whose source is "shards".
    """
    values = arguments(config)
    # The place is an argument of its own, wherever tars are found.
    del values["from"]
    return Shards(**values)


def download_spec(config: PrepareConfig) -> Download:
    """Return what to download, and how, made with the values of the configuration; they are not checked here.

    Args:
        config: A configuration whose source is one of `LISTS`. The keys `merge` and `check_only` are not used, and
            `split` only names the folder `out` of the result.
    """
    values = arguments(config)
    for key in ("merge", "check_only", "split"):
        del values[key]

    columns = tuple(values.pop("score_columns"))
    out = split_folder(config, config.keys["split"])
    return Download(**values, score_columns=columns, out=out)


def split_folder(config: PrepareConfig, split: str) -> Path:
    """Return the folder of a split's shards, which need not exist: `OUT/SPLIT`, or without `out`, `DATA/NAME/SPLIT`.

    Args:
        config: The configuration; it must have `out` or a name.
        split: "train", "val" or "test".
    """
    if config.out:
        parent = Path(config.out)
    else:
        # `check_prepare` refuses a source that has neither.
        assert config.name is not None
        parent = Path(config.paths["data"]) / config.name
    return parent.expanduser() / split


def check_prepare(config: PrepareConfig) -> None:
    """Check the source, the keys and the values of a configuration, and that the files and folders they name are there.

    Files are not opened, nothing is written, and the network is not asked.

    Raises:
        ConfigError: If something is wrong; the message names the key, the value found, and what to do.
    """
    source = config.source
    sources = ", ".join(_CALLS)
    require(source in _CALLS, f"source={source}: choose from {sources}")

    # In this order: a value can be judged only where its key is known.
    _check_keys(config)
    _check_values(config)

    if source == "scenes":
        threads = config.keys["threads"]
        require(threads > 0, f"threads={threads}: must be more than 0")
    elif source in LISTS:
        _check_list(config)
    elif source == "shards":
        _check_out(config)
        shards_spec(config).check()
        # It raises an error where no tar is found.
        find(config.keys["from"])
    else:
        _check_out(config)
        raw_spec(config).check()


def _check_keys(config: PrepareConfig) -> None:
    """Check that the source has each of the keys, and that each key of the source has a value.

    Raises:
        ConfigError: If a key is unknown or without a value.
    """
    source = config.source
    known = hints(source)
    for key in config.keys:
        if key in known:
            continue
        name = str(key)  # pyrefly: ignore[unnecessary-type-conversion]  a key in YAML may be a number
        close_names = get_close_matches(name, [*known, *to_dict(config)], 1)
        if close_names:
            hint = f"did you mean {close_names[0]}?"
        else:
            known_list = ", ".join(known)
            hint = f"here are {known_list}"
        raise ConfigError(f"{key}: source={source} has no such key, and nothing would read it; {hint}")

    values = to_dict(config) | config.keys
    missing = sorted(key for key, value in values.items() if value == MISSING)
    missing_list = ", ".join(missing)
    require(not missing, f"no value for {missing_list}: visllama prepare source={source} {_CALLS[source]}")
    # `~key` on the command line takes a key away.
    absent = sorted(key for key in known if key not in values)
    absent_list = ", ".join(absent)
    require(not absent, f"no value for {absent_list}: a key of source={source} was taken away")


def _check_values(config: PrepareConfig) -> None:
    """Check the types of all values, the name, and the number of workers.

    Raises:
        ConfigError: If one of them is wrong.
    """
    source = config.source
    # Tars that lie somewhere can be indexed there.
    require(config.name is not None or source == "shards", f"name=null: source={source} needs a name, of a folder")

    known = hints(source)
    for key, value in arguments(config).items():
        hint = known[key]
        require(matches_hint(value, hint), wrong_type(key, value, hint))

    _check_name(config.name)
    workers = config.keys.get("workers")
    require(
        workers is None or 0 < workers <= _MOST_WORKERS,
        f"workers={workers}: must be from 1 to {_MOST_WORKERS}, or null",
    )


def _check_name(name: str | None) -> None:
    """Check a name, which must neither lead out of the data folder nor be misread by a shell or in an override."""
    require(
        name is None or re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII) is not None,
        f"name={name}: a name consists of letters, digits, _, - and ., since a folder gets it",
    )


def _check_list(config: PrepareConfig) -> None:
    """Check the values of the keys that a URL list has."""
    _check_out(config)

    keys = config.keys
    require_split(keys["split"])
    list_path = keys["list"]
    is_there = Path(list_path).expanduser().exists()
    require(is_there, f"list={list_path}: no such file or folder")
    # It raises an error where the part is not written as it should be.
    read_part(keys["part"])

    for key in ("image_size_px", "samples_per_shard", "processes", "threads", "timeout_s"):
        require(keys[key] > 0, f"{key}={keys[key]}: must be more than 0")
    min_success = keys["min_success"]
    require(0 <= min_success <= 1, f"min_success={min_success}: must be in [0, 1]")


def _check_out(config: PrepareConfig) -> None:
    """Check that the folder to write to is not, and does not lie below, a file."""
    if config.out:
        key = "out"
        place = config.out
    else:
        key = "paths.data"
        place = config.paths["data"]

    # Most of the place need not exist yet: what does exist of it has to be a folder.
    above = Path(place).expanduser()
    while not above.exists() and above != above.parent:
        above = above.parent
    require(above.is_dir(), f"{key}={place}: {above} is a file: give another folder")
