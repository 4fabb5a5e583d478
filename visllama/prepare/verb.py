"""`visllama prepare source=NAME key=value ...`: raw data -> shards + index under `${paths.data}/NAME/SPLIT`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from visllama.config.overrides import override
from visllama.config.schema import conf_dir
from visllama.console import say
from visllama.data.shards.manifest import Manifest, index_tars
from visllama.data.shards.remote import is_remote
from visllama.errors import ConfigError
from visllama.prepare import adopt, download
from visllama.prepare.keys import LISTS, given, split_folder
from visllama.prepare.layout import lay_out, refuse_too_many_bad
from visllama.prepare.raw import RawData, Skipped
from visllama.prepare.writer import find_bad_records, write_split

_MB = 10**6
_RUNTIME = ("workers", "max_bad_fraction", "check_only")


def prepare(cfg: DictConfig) -> dict:
    """Prepare a source.

    Raises:
        ConfigError: If it cannot be done, or too much of it is bad; nothing then stands where shards would be read.
    """
    if cfg.source == "scenes":
        from visllama.prepare.scenes import prepare as prepare_scenes  # here: it imports torch and transformers

        return prepare_scenes(cfg)
    if cfg.source == "shards":
        return _adopt(cfg)
    if cfg.source in LISTS:
        return _download(cfg)
    return _write(cfg)


def _write(cfg: DictConfig) -> dict:
    spec = given(cfg)
    assert isinstance(spec, RawData)
    images = spec.folder()
    splits = {
        name: lay_out(split, images, spec.shard_size_mb * _MB)
        for name, split in spec.read().items()
        if split.records or split.skipped
    }
    if not splits:
        raise ConfigError(f"source={cfg.source}: its file holds no record")
    if spec.check_only:
        found = {name: find_bad_records(plan, spec.workers) for name, plan in splits.items()}
        say(*_listed(found), *(f"{n}: {splits[n].num_records} records, {len(bad)} are bad" for n, bad in found.items()))
        for name, plan in splits.items():
            refuse_too_many_bad(name, found[name], plan.num_records, spec.max_bad_fraction)
        return {"skipped": {name: len(bad) for name, bad in found.items()}}
    for name, plan in splits.items():  # all of them, before anything is written
        refuse_too_many_bad(name, plan.skipped, plan.num_records, spec.max_bad_fraction)
    settings = {key: value for key, value in vars(spec).items() if key not in _RUNTIME} | {"source": cfg.source}
    made = {}
    for name, plan in splits.items():
        folder = split_folder(cfg, name)
        try:
            made[name] = write_split(plan, folder, settings, spec.max_bad_fraction, spec.workers)
        except KeyboardInterrupt:
            raise ConfigError(f"stopped while {folder} was made: the same command goes on from there") from None
    return _told(cfg, made)


def _listed(found: dict[str, list[Skipped]]) -> list[str]:
    return [f"{s.where}: {s.reason}: {s.detail}" for skipped in found.values() for s in skipped]


def _adopt(cfg: DictConfig) -> dict:
    started, spec = time.perf_counter(), given(cfg)
    if spec.check_only:
        tars = adopt.find(cfg["from"])
        if is_remote(tars[0]):
            say(*tars[:10], f"{len(tars)} tars; they are looked at when they are fetched")
            return {"shards": len(tars)}
        records = total = 0
        for tar, index in zip(tars, adopt.index_each(tars), strict=True):
            say(*(fault.tell(tar) for fault in index.faults))
            records, total = records + index.num_records, total + sum(index.facts["faults"].values())
        say(f"{len(tars)} tars, {records:,} records, {total:,} faults")
        return {"shards": len(tars), "records": records, "faults": total}
    folder = split_folder(cfg, spec.split) if cfg.name or cfg.out else None
    place, manifest = adopt.adopt(spec, cfg["from"], folder, Path(cfg.paths.cache).expanduser())
    made = {spec.split: adopt.counts(manifest, started)}
    if folder is None:
        say(_table(made), f"Indexed {place}", f"Train on it:  python train.py {shlex.join(_as_shards(place, None))}")
        return {"splits": made, "out": str(place)}
    return _told(cfg, made)


def _download(cfg: DictConfig) -> dict:
    started, spec = time.perf_counter(), given(cfg)
    if cfg.check_only:
        say(f"list={cfg.list}: is there; it would be downloaded to {spec.out}")
        return {}
    summary = download.merge(spec) if cfg.merge else download.download(spec)
    counted = {key: value for key, value in summary.items() if key != "refused_urls" and not isinstance(value, dict)}
    say(f"{cfg.source}: " + ", ".join(f"{key} {value}" for key, value in counted.items()))
    if cfg.part and not cfg.merge:
        say(f"Part {cfg.part} is done. When all are:  visllama prepare {shlex.join(_merging(cfg))}")
        return {"downloaded": summary, "out": str(spec.out)}
    tars = sorted(spec.out.glob("*.tar"))
    indexes = index_tars(tars, [tar.with_name(f"{tar.name}.idx") for tar in tars])
    manifest = Manifest.of(str(spec.out), [tar.name for tar in tars], indexes)
    manifest.save()
    return _told(cfg, {cfg.split: adopt.counts(manifest, started)}) | {"downloaded": summary}


def _merging(cfg: DictConfig) -> list[str]:
    """Give what was typed for a part, as what is typed to merge all of them."""
    typed = HydraConfig.get().overrides.task
    return [*(word for word in typed if not word.startswith(("part=", "merge="))), "merge=true"]


def _told(cfg: DictConfig, made: dict[str, dict]) -> dict:
    """Show what was made, and the next command."""
    out = split_folder(cfg, "train").parent
    say(_table(made), f"Wrote {', '.join(str(out / split) for split in made)}", *_next(cfg, out, set(made)))
    return {"splits": made, "out": str(out)}


def _next(cfg: DictConfig, out: Path, made: set[str]) -> list[str]:
    there = {split for split in ("train", "val", "test") if (out / split / "manifest.json").is_file()}
    manifests = [Manifest.parse(str(out / split), (out / split / "manifest.json").read_bytes()) for split in made]
    kinds = {kind for manifest in manifests for kind in manifest.kinds}
    if kinds - {"captions"}:
        return _next_stage_2(cfg, out, there, kinds)
    if "train" not in there:
        source = override("evaluation.shards_caption.source.val_path", out / sorted(there)[0])
        judge_on = f"evaluation=[shards_caption] {shlex.quote(source)}"
        return [f"Judge on it:  python evaluate.py weights=RUN/weights {judge_on}"]
    default = Path(cfg.paths.data).expanduser() / str(cfg.name) == out
    data = conf_dir() / "data" / f"{cfg.name}.yaml"
    if not default or not data.is_file():
        words = _as_shards(out / "train", out / "val" if "val" in there else None)
        return [f"Train on it:  python train.py {shlex.join(words)}"]
    words = [f"data={cfg.name}"]
    judged = OmegaConf.to_container(OmegaConf.load(data))["defaults"]
    if any("coco_karpathy" in str(entry) for entry in judged) and not (_coco(cfg) / "test" / "manifest.json").is_file():
        words.append("evaluation=none")
    if not (out / "val").is_dir():
        words += _without_val(cfg)
    return [f"Train on it:  python train.py {' '.join(words)}"]


def _without_val(cfg: DictConfig) -> list[str]:
    """Return what switches off the validation records of a source's config, where they are not there."""
    node = OmegaConf.load(conf_dir() / "data" / "source" / f"{cfg.name}.yaml")
    needed = str(OmegaConf.to_container(node).get("val_path", "")).partition("}/")[2]
    if needed and not (Path(cfg.paths.data).expanduser() / needed).is_dir():
        return [f"data.sources.{cfg.name}.val_path=null"]
    return []


def _next_stage_2(cfg: DictConfig, out: Path, there: set[str], kinds: set[str]) -> list[str]:
    """Return the command that trains on questions or conversations, or judges on questions."""
    is_default = Path(cfg.paths.data).expanduser() / str(cfg.name) == out
    if "train" not in there:
        if kinds != {"questions"}:
            return []  # nothing judges conversations
        split = sorted(there)[0]
        words = ["evaluation=[vqav2]", f"evaluation.vqav2.split={split}"]
        if not (is_default and cfg.name == "vqa"):
            words.append(override("evaluation.vqav2.source.val_path", out / split))
        return [f"Judge on it:  python evaluate.py weights=RUN/weights {shlex.join(words)}"]

    # Of each source of its own name the config knows the place, and the words behind a question.
    if is_default and (conf_dir() / "data" / "source" / f"{cfg.name}.yaml").is_file():
        words = ["data=shards", f"data/source=[{cfg.name}]", *_without_val(cfg)]
    else:
        words = _as_shards(out / "train", out / "val" if "val" in there else None)
    judged = "[vqav2]" if kinds == {"questions"} and "val" in there and cfg.name == "vqa" and is_default else "none"
    words.append(f"evaluation={judged}")
    return [f"Train on it:  python train.py stage=finetune init_from=RUN/weights {shlex.join(words)}"]


def _coco(cfg: DictConfig) -> Path:
    return Path(cfg.paths.data).expanduser() / "coco"


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
