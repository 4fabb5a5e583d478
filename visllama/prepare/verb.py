"""`visllama prepare source=NAME key=value ...`: raw data -> shards + index under `${paths.data}/NAME/SPLIT`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from rich.table import Table

from visllama.config.invocation import invocation
from visllama.config.overrides import override
from visllama.config.schema import PrepareConfig, conf_dir, read_conf
from visllama.console import say
from visllama.data.shards.manifest import Manifest, index_tars
from visllama.data.shards.remote import is_remote
from visllama.errors import ConfigError
from visllama.prepare import adopt, download
from visllama.prepare.keys import LISTS, check_prepare, given, split_folder
from visllama.prepare.layout import lay_out, refuse_too_many_bad
from visllama.prepare.raw import RawData, Skipped
from visllama.prepare.writer import find_bad_records, write_split

_MB = 10**6
_RUNTIME = ("workers", "max_bad_fraction", "check_only")


def assemble(config: PrepareConfig) -> None:
    """Refuse wrong keys, values and files before anything is read or written.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    check_prepare(config)


def prepare(config: PrepareConfig) -> dict:
    """Prepare a source.

    Raises:
        ConfigError: If it cannot be done, or too much of it is bad; nothing then stands where shards would be read.
    """
    if config.source == "scenes":
        from visllama.prepare.scenes import prepare as prepare_scenes  # here: it imports torch and transformers

        return prepare_scenes(config)
    if config.source == "shards":
        return _adopt(config)
    if config.source in LISTS:
        return _download(config)
    return _write(config)


def _write(config: PrepareConfig) -> dict:
    spec = given(config)
    assert isinstance(spec, RawData)
    images = spec.folder()
    splits = {
        name: lay_out(split, images, spec.shard_size_mb * _MB)
        for name, split in spec.read().items()
        if split.records or split.skipped
    }
    if not splits:
        raise ConfigError(f"source={config.source}: its file holds no record")
    if spec.check_only:
        found = {name: find_bad_records(plan, spec.workers) for name, plan in splits.items()}
        say(*_listed(found), *(f"{n}: {splits[n].num_records} records, {len(bad)} are bad" for n, bad in found.items()))
        for name, plan in splits.items():
            refuse_too_many_bad(name, found[name], plan.num_records, spec.max_bad_fraction)
        return {"skipped": {name: len(bad) for name, bad in found.items()}}
    for name, plan in splits.items():  # all of them, before anything is written
        refuse_too_many_bad(name, plan.skipped, plan.num_records, spec.max_bad_fraction)
    settings = {key: value for key, value in vars(spec).items() if key not in _RUNTIME} | {"source": config.source}
    made = {}
    for name, plan in splits.items():
        folder = split_folder(config, name)
        try:
            made[name] = write_split(plan, folder, settings, spec.max_bad_fraction, spec.workers)
        except KeyboardInterrupt:
            raise ConfigError(f"stopped while {folder} was made: the same command goes on from there") from None
    return _told(config, made)


def _listed(found: dict[str, list[Skipped]]) -> list[str]:
    return [f"{s.where}: {s.reason}: {s.detail}" for skipped in found.values() for s in skipped]


def _adopt(config: PrepareConfig) -> dict:
    started, spec = time.perf_counter(), given(config)
    if spec.check_only:
        tars = adopt.find(config.keys["from"])
        if is_remote(tars[0]):
            say(*tars[:10], f"{len(tars)} tars; they are looked at when they are fetched")
            return {"shards": len(tars)}
        records = total = 0
        for tar, index in zip(tars, adopt.index_each(tars), strict=True):
            say(*(fault.tell(tar) for fault in index.faults))
            records, total = records + index.num_records, total + sum(index.facts["faults"].values())
        say(f"{len(tars)} tars, {records:,} records, {total:,} faults")
        return {"shards": len(tars), "records": records, "faults": total}
    folder = split_folder(config, spec.split) if config.name or config.out else None
    place, manifest = adopt.adopt(spec, config.keys["from"], folder, Path(config.paths["cache"]).expanduser())
    made = {spec.split: adopt.counts(manifest, started)}
    if folder is None:
        say(_table(made), f"Indexed {place}", f"Train on it:  visllama train {shlex.join(_as_shards(place, None))}")
        return {"splits": made, "out": str(place)}
    return _told(config, made)


def _download(config: PrepareConfig) -> dict:
    started, spec = time.perf_counter(), given(config)
    keys = config.keys
    if keys["check_only"]:
        say(f"list={keys['list']}: is there; it would be downloaded to {spec.out}")
        return {}
    summary = download.merge(spec) if keys["merge"] else download.download(spec)
    counted = {key: value for key, value in summary.items() if key != "refused_urls" and not isinstance(value, dict)}
    say(f"{config.source}: " + ", ".join(f"{key} {value}" for key, value in counted.items()))
    if keys["part"] and not keys["merge"]:
        say(f"Part {keys['part']} is done. When all are:  visllama prepare {shlex.join(_merging())}")
        return {"downloaded": summary, "out": str(spec.out)}
    tars = sorted(spec.out.glob("*.tar"))
    indexes = index_tars(tars, [tar.with_name(f"{tar.name}.idx") for tar in tars])
    manifest = Manifest.of(str(spec.out), [tar.name for tar in tars], indexes)
    manifest.save()
    return _told(config, {keys["split"]: adopt.counts(manifest, started)}) | {"downloaded": summary}


def _merging() -> list[str]:
    """Return what was typed for a part, as what is typed to merge all of them."""
    typed = invocation().overrides
    return [*(word for word in typed if not word.startswith(("part=", "merge="))), "merge=true"]


def _told(config: PrepareConfig, made: dict[str, dict]) -> dict:
    """Show what was made, and the next command."""
    out = split_folder(config, "train").parent
    say(_table(made), f"Wrote {', '.join(str(out / split) for split in made)}", *_next(config, out, set(made)))
    return {"splits": made, "out": str(out)}


def _next(config: PrepareConfig, out: Path, made: set[str]) -> list[str]:
    there = {split for split in ("train", "val", "test") if (out / split / "manifest.json").is_file()}
    manifests = [Manifest.parse(str(out / split), (out / split / "manifest.json").read_bytes()) for split in made]
    kinds = {kind for manifest in manifests for kind in manifest.kinds}
    if kinds - {"captions"}:
        return _next_stage_2(config, out, there, kinds)
    if "train" not in there:
        return [_judging("shards_caption", config, out, sorted(there)[0])]
    default = Path(config.paths["data"]).expanduser() / str(config.name) == out
    data = f"data/{config.name}.yaml"
    if not default or not (conf_dir() / data).is_file():
        words = _as_shards(out / "train", out / "val" if "val" in there else None)
        return [f"Train on it:  visllama train {shlex.join(words)}"]
    words = [f"data={config.name}"]
    is_judged_on_coco = any("coco_karpathy" in str(entry) for entry in read_conf(data)["defaults"])
    if is_judged_on_coco and not (_coco(config) / "test" / "manifest.json").is_file():
        words.append("evaluation=none")
    if not (out / "val").is_dir():
        words += _without_val(config)
    return [f"Train on it:  visllama train {' '.join(words)}"]


def _without_val(config: PrepareConfig) -> list[str]:
    """Return what switches off the validation records of a source's config, where they are not there."""
    node = read_conf(f"data/source/{config.name}.yaml")
    needed = str(node.get("val_path", "")).partition("}/")[2]
    if needed and not (Path(config.paths["data"]).expanduser() / needed).is_dir():
        return [f"data.sources.{config.name}.val_path=null"]
    return []


def _next_stage_2(config: PrepareConfig, out: Path, there: set[str], kinds: set[str]) -> list[str]:
    """Return the command that trains on questions or conversations, or judges on questions."""
    is_default = Path(config.paths["data"]).expanduser() / str(config.name) == out
    if "train" not in there:
        if kinds != {"questions"}:
            return []  # nothing judges conversations
        return [_judging("vqav2", config, out, sorted(there)[0])]

    # Of each source of its own name the config knows the place, and the words behind a question.
    if is_default and (conf_dir() / "data" / "source" / f"{config.name}.yaml").is_file():
        words = ["data=shards", f"data/source=[{config.name}]", *_without_val(config)]
    else:
        words = _as_shards(out / "train", out / "val" if "val" in there else None)
    judged = "[vqav2]" if kinds == {"questions"} and "val" in there and config.name == "vqa" and is_default else "none"
    words.append(f"evaluation={judged}")
    return [f"Train on it:  visllama train stage=finetune init_from=RUN/weights {shlex.join(words)}"]


def _judging(evaluation: str, config: PrepareConfig, out: Path, split: str) -> str:
    """Return the command that judges on a split: by the evaluation of the source's own name, if it reads that place.

    Args:
        evaluation: The evaluation that judges other shards with the same kind of records.
        config: What was prepared.
        out: The folder of its splits.
        split: The name of the split.
    """
    is_default = Path(config.paths["data"]).expanduser() / str(config.name) == out
    own = {"vqa": "vqav2"}.get(config.source, config.source)
    if is_default and config.name == config.source and (conf_dir() / "evaluation" / f"{own}.yaml").is_file():
        words = [f"evaluation=[{own}]", f"evaluation.{own}.split={split}"]
    else:
        place = override(f"evaluation.{evaluation}.source.val_path", out / split)
        words = [f"evaluation=[{evaluation}]", f"evaluation.{evaluation}.split={split}", place]
    return f"Judge on it:  visllama evaluate weights=RUN/weights {shlex.join(words)}"


def _coco(config: PrepareConfig) -> Path:
    return Path(config.paths["data"]).expanduser() / "coco"


def _as_shards(train: Path, val: Path | None) -> list[str]:
    words = ["data=shards", override("data.sources.shards.path", train)]
    return words if val is None else [*words, override("data.sources.shards.val_path", val)]


def _table(made: dict[str, dict]) -> Table:
    table = Table("split", title="Prepared")
    columns = ("records", "pairs", "images", "shards", "MB", "seconds")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("left out")
    for split, facts in made.items():
        shown = facts | {"MB": f"{facts['bytes'] / _MB:.1f}"}
        left = ", ".join(f"{reason} {count}" for reason, count in facts["skipped"].items()) or "nothing"
        table.add_row(split, *(str(shown.get(column, "")) for column in columns), left)
    return table
