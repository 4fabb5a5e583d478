"""`visllama prepare source=NAME key=value ...`: write raw data as shards (tars) with an index, a folder for each split.

The folders are `${paths.data}/NAME/SPLIT`, or `OUT/SPLIT` where the key `out` is given.
"""

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
from visllama.prepare.keys import LISTS, check_prepare, download_spec, raw_spec, shards_spec, split_folder
from visllama.prepare.layout import SplitLayout, lay_out, refuse_too_many_bad
from visllama.prepare.raw import SPLITS, RawData
from visllama.prepare.writer import find_bad_records, write_split

_MB = 10**6
# Keys that the shards do not follow from.
_RUNTIME = ("workers", "max_bad_fraction", "check_only")


def assemble(config: PrepareConfig) -> None:
    """Check the keys of `prepare` and their values, and that the files and folders they name are there.

    No file is opened, and nothing is written. The command line calls a verb's `assemble`, if it has one, before the
    verb itself; other verbs also build objects there.

    Raises:
        ConfigError: If a key or a value cannot be used; the message names the key, and says what to do.
    """
    check_prepare(config)


def prepare(config: PrepareConfig) -> dict:
    """Prepare the data that `config.source` names, and print a summary and the command that is likely to come next.

    A raw dataset is written as shards (tars with an index), existing tars are indexed, and a list of URLs is downloaded
    as shards. For "scenes" the CLIP and the LLaMA of the embedded world are trained.

    Args:
        config: A configuration that `assemble` has accepted.

    Returns:
        `splits` (for each split, its counts) and `out` (the folder of the splits, as text; for local tars that are
        indexed where they lie, the path of the tars). A URL list adds `downloaded` (the counts of URLs); one part of a
        list has no `splits` yet. `source=scenes` returns the content of its `recipe.json` instead. With
        `check_only=true` no shard is written; the result holds the counts of the check under other names, and is empty
        for a URL list.

    Raises:
        ConfigError: If the raw files cannot be used, more of the records or URLs fail than is allowed, or the folder of
            a split already holds other files. No folder with the split's name is made for a split that fails.
    """
    if config.source == "scenes":
        # Imported here, since it imports torch and transformers.
        from visllama.prepare.scenes import prepare as prepare_scenes

        return prepare_scenes(config)
    if config.source == "shards":
        return _adopt(config)
    if config.source in LISTS:
        return _download(config)
    return _write(config)


def _write(config: PrepareConfig) -> dict:
    """Write the shards of a raw dataset; with `check_only`, only decode all of its images."""
    spec = raw_spec(config)
    plans = _lay_out_splits(spec)
    if not plans:
        raise ConfigError(f"source={config.source}: its file holds no record")

    if spec.check_only:
        return _check_only(spec, plans)

    # All splits are judged before anything is written.
    for split, plan in plans.items():
        refuse_too_many_bad(split, plan.skipped, plan.num_records, spec.max_bad_fraction)

    settings = {key: value for key, value in vars(spec).items() if key not in _RUNTIME}
    settings["source"] = config.source

    counts = {}
    for split, plan in plans.items():
        folder = split_folder(config, split)
        try:
            counts[split] = write_split(plan, folder, settings, spec.max_bad_fraction, spec.workers)
        except KeyboardInterrupt:
            raise ConfigError(f"stopped while {folder} was made: the same command goes on from there") from None
    return _report(config, counts)


def _lay_out_splits(spec: RawData) -> dict[str, SplitLayout]:
    """Read a raw dataset, and return which record goes into which shard, for each split that has a record.

    This is a function of its own so that the last split that was read is not held while the shards are written.
    """
    images = spec.folder()
    shard_bytes = spec.shard_size_mb * _MB
    plans = {}
    for split, raw_split in spec.read().items():
        # A split without any record would become an empty folder.
        if raw_split.records or raw_split.skipped:
            plans[split] = lay_out(raw_split, images, shard_bytes)
    return plans


def _check_only(spec: RawData, plans: dict[str, SplitLayout]) -> dict:
    """Decode every image, print each bad record, and return the number of bad ones by split, under `skipped`."""
    bad_records = {}
    for split, plan in plans.items():
        bad_records[split] = find_bad_records(plan, spec.workers)

    lines = []
    for records in bad_records.values():
        for record in records:
            lines.append(f"{record.where}: {record.reason}: {record.detail}")
    for split, records in bad_records.items():
        num_records = plans[split].num_records
        lines.append(f"{split}: {num_records} records, {len(records)} are bad")
    say(*lines)

    num_bad = {}
    for split, plan in plans.items():
        records = bad_records[split]
        refuse_too_many_bad(split, records, plan.num_records, spec.max_bad_fraction)
        num_bad[split] = len(records)
    return {"skipped": num_bad}


def _adopt(config: PrepareConfig) -> dict:
    """Index tars that exist already, under a name or where they lie; with `check_only`, only report their damage."""
    started = time.perf_counter()
    spec = shards_spec(config)
    place = config.keys["from"]
    if spec.check_only:
        return _check_tars(place)

    # Without a name there is no folder to keep links in: the tars are indexed where they lie.
    folder = None
    if config.name or config.out:
        folder = split_folder(config, spec.split)
    cache = Path(config.paths["cache"]).expanduser()
    shards, manifest = adopt.adopt(spec, place, folder, cache)

    counts = {spec.split: adopt.counts(manifest, started)}
    if folder is not None:
        return _report(config, counts)

    table = _table(counts)
    next_command = _train_line(_as_shards(shards, None))
    say(table, f"Indexed {shards}", next_command)
    return {"splits": counts, "out": str(shards)}


def _check_tars(place: str) -> dict:
    """Print each damaged place in local tars, and return the counts; of remote tars print the first addresses alone.

    Nothing is written.
    """
    tars = adopt.find(place)
    num_tars = len(tars)
    if is_remote(tars[0]):
        first_tars = tars[:10]
        say(*first_tars, f"{num_tars} tars; they are looked at when they are fetched")
        return {"shards": num_tars}

    num_records = 0
    num_faults = 0
    for tar, index in zip(tars, adopt.index_each(tars), strict=True):
        lines = [fault.tell(tar) for fault in index.faults]
        say(*lines)
        num_records += index.num_records
        # More places may be damaged than `index.faults` lists.
        faults_by_reason = index.facts["faults"]
        num_faults += sum(faults_by_reason.values())
    say(f"{num_tars} tars, {num_records:,} records, {num_faults:,} faults")
    return {"shards": num_tars, "records": num_records, "faults": num_faults}


def _download(config: PrepareConfig) -> dict:
    """Download a URL list or a part of it, or merge its parts; with `check_only`, only say where it would go."""
    started = time.perf_counter()
    spec = download_spec(config)
    if config.keys["check_only"]:
        say(f"list={spec.list}: is there; it would be downloaded to {spec.out}")
        return {}

    is_merge = config.keys["merge"]
    summary = download.merge(spec) if is_merge else download.download(spec)
    totals = []
    for key, value in summary.items():
        # The counts by reason are not shown.
        if not isinstance(value, dict):
            totals.append(f"{key} {value}")
    total_list = ", ".join(totals)
    say(f"{config.source}: {total_list}")

    # The shards of a part get their names, and their index, when all parts are merged.
    if spec.part and not is_merge:
        command = shlex.join(_merge_overrides())
        say(f"Part {spec.part} is done. When all are:  visllama prepare {command}")
        return {"downloaded": summary, "out": str(spec.out)}

    manifest = _index_folder(spec.out)
    split = config.keys["split"]
    counts = {split: adopt.counts(manifest, started)}
    result = _report(config, counts)
    result["downloaded"] = summary
    return result


def _index_folder(folder: Path) -> Manifest:
    """Index all tars of a folder, and write their manifest beside them."""
    tars = sorted(folder.glob("*.tar"))
    homes = [tar.with_name(f"{tar.name}.idx") for tar in tars]
    rows = index_tars(tars, homes)
    names = [tar.name for tar in tars]
    manifest = Manifest.of(str(folder), names, rows)
    manifest.save()
    return manifest


def _merge_overrides() -> list[str]:
    """Return the overrides that merge all parts of a list: those that were typed, with `merge` in place of `part`."""
    typed = invocation().overrides
    kept = [word for word in typed if not word.startswith(("part=", "merge="))]
    return [*kept, "merge=true"]


def _report(config: PrepareConfig, counts: dict[str, dict]) -> dict:
    """Print the counts of the splits, their folders and the next command, and return `splits` and `out`."""
    out = split_folder(config, "train").parent
    written = set(counts)
    next_commands = _next(config, out, written)
    table = _table(counts)
    folders = [str(out / split) for split in counts]
    folder_list = ", ".join(folders)
    say(table, f"Wrote {folder_list}", *next_commands)
    return {"splits": counts, "out": str(out)}


def _next(config: PrepareConfig, out: Path, written: set[str]) -> list[str]:
    """Return a line with the command that is likely to come next; an empty list if there is none.

    Args:
        config: The configuration of `prepare`.
        out: The folder of the splits.
        written: The splits that were written just now; others may be there already.
    """
    # Splits may be prepared one by one, from different files.
    there = {split for split in SPLITS if _is_prepared(out / split)}
    kinds = _kinds_of(out, written)

    # Questions and conversations are learned in the second stage.
    if kinds - {"captions"}:
        return _next_stage_2(config, out, there, kinds)
    return [_next_stage_1(config, out, there)]


def _is_prepared(folder: Path) -> bool:
    """Return whether a folder holds a split that is written to its end."""
    manifest = folder / "manifest.json"
    return manifest.is_file()


def _kinds_of(out: Path, splits: set[str]) -> set[str]:
    """Return the kinds of records that are in some splits of a folder: "captions", "questions", "conversations"."""
    kinds = set()
    for split in splits:
        folder = out / split
        content = (folder / "manifest.json").read_bytes()
        manifest = Manifest.parse(str(folder), content)
        kinds.update(manifest.kinds)
    return kinds


def _next_stage_1(config: PrepareConfig, out: Path, there: set[str]) -> str:
    """Return a line with the command that trains on captions; without `train`, with one that judges on a split.

    Args:
        config: The configuration of `prepare`.
        out: The folder of the splits.
        there: The splits that are in that folder.
    """
    if "train" not in there:
        return _judging("shards_caption", config, out, min(there))

    # A name without a config of its own, or with another place, is read by the config for any shards.
    data = f"data/{config.name}.yaml"
    has_config = (conf_dir() / data).is_file()
    if not has_config or not _is_default_place(config, out):
        return _train_line(_as_shards_of(out, there))

    words = [f"data={config.name}"]
    # That evaluation would stop the training at its start where COCO is not prepared.
    defaults = read_conf(data)["defaults"]
    is_judged_on_coco = any("coco_karpathy" in str(entry) for entry in defaults)
    coco_test = _data_folder(config) / "coco" / "test"
    if is_judged_on_coco and not _is_prepared(coco_test):
        words.append("evaluation=none")

    val = out / "val"
    if not val.is_dir():
        words += _without_val(config)
    return _train_line(words)


def _without_val(config: PrepareConfig) -> list[str]:
    """Return the override that switches off a source's validation records, if its config expects some not yet made."""
    source_config = read_conf(f"data/source/{config.name}.yaml")
    # `${paths.data}/NAME/val`: the part behind the data folder.
    val_path = str(source_config.get("val_path", ""))
    _, _, expected = val_path.partition("}/")
    if not expected:
        return []

    folder = _data_folder(config) / expected
    if folder.is_dir():
        return []
    return [f"data.sources.{config.name}.val_path=null"]


def _next_stage_2(config: PrepareConfig, out: Path, there: set[str], kinds: set[str]) -> list[str]:
    """Return a line with the command that trains on questions or conversations; without `train`, one that judges.

    Args:
        config: The configuration of `prepare`.
        out: The folder of the splits.
        there: The splits that are in that folder.
        kinds: The kinds of records that were written just now: "captions", "questions" or "conversations".
    """
    has_only_questions = kinds == {"questions"}
    if "train" not in there:
        if not has_only_questions:
            # No evaluation judges conversations.
            return []
        return [_judging("vqav2", config, out, min(there))]

    is_default = _is_default_place(config, out)
    source_config = conf_dir() / "data" / "source" / f"{config.name}.yaml"
    # A config that a source has of its own knows the place, and the words behind a question.
    if is_default and source_config.is_file():
        words = ["data=shards", f"data/source=[{config.name}]", *_without_val(config)]
    else:
        words = _as_shards_of(out, there)

    is_vqa = config.name == "vqa" and is_default
    if is_vqa and has_only_questions and "val" in there:
        words.append("evaluation=[vqav2]")
    else:
        words.append("evaluation=none")
    return [_train_line(["stage=finetune", "init_from=RUN/weights", *words])]


def _train_line(words: list[str]) -> str:
    """Return the line that shows the command which trains with these overrides."""
    return f"Train on it:  visllama train {shlex.join(words)}"


def _judging(evaluation: str, config: PrepareConfig, out: Path, split: str) -> str:
    """Return a line with the command that judges a trained model on a split.

    The evaluation that has the name of the source is taken if its config reads this folder.

    Args:
        evaluation: The evaluation to take otherwise; it can judge any shards with this kind of records.
        config: The configuration of `prepare`.
        out: The folder of the splits.
        split: The name of the split.
    """
    own_evaluation = "vqav2" if config.source == "vqa" else config.source
    own_config = conf_dir() / "evaluation" / f"{own_evaluation}.yaml"
    is_own_place = config.name == config.source and _is_default_place(config, out)
    is_read_by_own = is_own_place and own_config.is_file()
    if is_read_by_own:
        evaluation = own_evaluation

    key = f"evaluation.{evaluation}"
    words = [f"evaluation=[{evaluation}]", f"{key}.split={split}"]
    if not is_read_by_own:
        place = override(f"{key}.source.val_path", out / split)
        words.append(place)
    command = shlex.join(words)
    return f"Judge on it:  visllama evaluate weights=RUN/weights {command}"


def _data_folder(config: PrepareConfig) -> Path:
    """Return the folder `paths.data`, below which each dataset has a folder."""
    return Path(config.paths["data"]).expanduser()


def _is_default_place(config: PrepareConfig, out: Path) -> bool:
    """Return whether the splits lie in `${paths.data}/NAME`, where the configs of that name look for them."""
    return _data_folder(config) / str(config.name) == out


def _as_shards_of(out: Path, there: set[str]) -> list[str]:
    """Return the overrides that let `train` read the splits `train` and, if it is there, `val` of a folder."""
    val = out / "val" if "val" in there else None
    return _as_shards(out / "train", val)


def _as_shards(train: Path, val: Path | None) -> list[str]:
    """Return the overrides that let `train` read the shards at a path, with validation records from another or none."""
    words = ["data=shards", override("data.sources.shards.path", train)]
    if val is not None:
        words.append(override("data.sources.shards.val_path", val))
    return words


def _table(counts: dict[str, dict]) -> Table:
    """Return the table of what was written, a row for each split."""
    table = Table("split", title="Prepared")
    columns = ("records", "pairs", "images", "shards", "MB", "seconds")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("left out")

    for split, split_counts in counts.items():
        megabytes = split_counts["bytes"] / _MB
        values = split_counts | {"MB": f"{megabytes:.1f}"}
        # Tars that others have made have no count of images.
        cells = [str(values.get(column, "")) for column in columns]

        reasons = [f"{reason} {count}" for reason, count in split_counts["skipped"].items()]
        left_out = ", ".join(reasons) or "nothing"
        table.add_row(split, *cells, left_out)
    return table
