"""A card's account of the training: the data, the stage's values, the command that repeats it, and what made it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from visllama.evaluation.metrics_file import is_number, mapping
from visllama.markdown import escape, fenced, table, without_places
from visllama.release.licences import find_data_terms, tell_scenes
from visllama.release.run_facts import RunFacts

_SCENES_TARGET = "visllama.data.scenes."


def sources_of(facts: RunFacts) -> dict[str, dict]:
    """Return the data sources of a run, by name."""
    found = mapping(facts.config, "data", "sources")
    return {name: source for name, source in found.items() if isinstance(source, dict)}


def is_scenes(source: Mapping) -> bool:
    """Return whether a source is of the embedded world."""
    return str(source.get("_target_")).startswith(_SCENES_TARGET)


def data_section(facts: RunFacts) -> str:
    """Return what the run was trained on, and the first stage before it; empty where that is not known."""
    told = _data(facts)
    if facts.first is None or not (before := _data(facts.first)):
        return told
    return "\n\n".join(["**First stage**", before, "**Second stage**", told])


def _data(facts: RunFacts) -> str:
    sources = sources_of(facts)
    if not sources:
        return ""
    weights = {name: source.get("weight") for name, source in sources.items()}
    total = sum(weight for weight in weights.values() if is_number(weight))
    samples = mapping(facts.metrics, "train").get("samples")
    rows = []
    for name, source in sources.items():
        share = weights[name] / total if is_number(weights[name]) and total else None
        of_it = f"{share * samples:,.0f}" if share is not None and is_number(samples) else ""
        shown = "" if share is None else f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
        rows.append([escape(name), shown, of_it, _tell_source(name, source)])
    lines = [table(["source", "share of the samples", "samples, about", "what it is"], rows)]
    if is_number(samples):
        lines.append(f"{samples:,} samples were seen in all; a sample is a picture with one text, or a text alone.")
    return "\n\n".join(lines)


def _tell_source(name: str, source: Mapping) -> str:
    if is_scenes(source):
        told = tell_scenes(source.get("holds"))
    elif terms := find_data_terms(name):
        told = terms.told
    else:
        path = source.get("path")
        told = "data of the trainer's own" + (f" ({escape(without_places(path))})" if isinstance(path, str) else "")
    kept = mapping(source, "filter")
    if kept:
        limits = [f"{key} {limit}" for key, limit in kept.items()]
        told += f"; filtered by {escape(', '.join(limits))}"
    return told


def training_section(facts: RunFacts) -> str:
    """Return how the weights were trained, and the commands that repeat it; empty where that is not known."""
    if facts.folder is None:
        return ""
    parts = []
    if facts.first is not None:
        parts += ["**First stage**", *_stage(facts.first), "**Second stage**, which began from the first one's weights"]
    parts += _stage(facts)
    if facts.words is not None:
        first = facts.first
        commands = [] if first is None or first.words is None else [_command(first.words)]
        begun = "RUN" if first is not None and first.words is not None else None
        commands.append(_command(facts.words, begun))
        told = "These commands repeat it" if len(commands) > 1 else "This command repeats it"
        if len(commands) > 1:
            told += "; RUN is the folder that the first one names at its end"
        told += "; PATH stands for a folder of yours" if any("PATH" in command for command in commands) else ""
        parts += [f"{told}.", fenced(commands, "bash")]
    return "\n\n".join(parts)


def _stage(facts: RunFacts) -> list[str]:
    rows = [[label, value] for label, value in _values(facts) if value]
    return [table(["", ""], rows)] if rows else []


def _values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield what a reader would want to repeat, each with its value; what is not known is empty."""
    config, train, made = facts.config, mapping(facts.metrics, "train"), facts.provenance
    stage, optim, trainer = (mapping(config, key) for key in ("stage", "optim", "trainer"))
    trained = facts.description["trained"]
    yield "trained parts", ", ".join(escape(name) for name in trained)
    yield "global batch", _number(stage.get("global_batch_size"), " samples")
    yield "steps", _number(train.get("steps"))
    if is_number(trainer.get("max_steps")) or is_number(stage.get("num_samples")):
        yield "length", "bounded by steps or samples, not by passes"
    else:
        yield "passes over the data", _number(stage.get("epochs"))
    yield "optimizer", escape(str(optim.get("_target_") or "").rpartition(".")[2])
    yield "learning rate", _rates(optim, trained)
    yield "schedule", _schedule(optim)
    yield "weight decay", _number(optim.get("weight_decay"))
    yield "gradient norm, at most", _number(optim.get("clip_norm"))
    yield "longest text", _number(stage.get("max_text_tokens"), " tokens, image tokens not counted")
    yield "prompt", escape(stage.get("prompt") or "")
    template = stage.get("template")
    yield "template", escape(template) if isinstance(template, str) else ""
    yield "LoRA", _lora(facts)
    yield "precision", escape(made.get("precision") or "")
    yield "seed", _number(made.get("seed"))
    yield "ranks", _number(made.get("num_ranks"))
    seconds, per_second = train.get("fit_seconds"), train.get("samples_per_second")
    speed = f", {per_second:,.0f} samples a second" if is_number(per_second) else ""
    yield "time", f"{seconds / 60:,.0f} minutes{speed}" if is_number(seconds) else ""
    yield (
        "last loss, training and validation",
        " and ".join(f"{train[key]:.3f}" for key in ("train/loss", "val/loss") if is_number(train.get(key))),
    )


def _number(value: object, unit: str = "") -> str:
    return f"{value:,}{unit}" if is_number(value) else ""


def _rates(optim: Mapping, trained: list) -> str:
    """Return the learning rate, and those of parts that have one of their own."""
    if not is_number(optim.get("lr")):
        return ""
    by_part = mapping(optim, "lr_by_part")
    own = [f"{escape(part)} {by_part[part]:g}" for part in by_part if part in trained and is_number(by_part[part])]
    return ", ".join([f"{optim['lr']:g}", *own])


def _schedule(optim: Mapping) -> str:
    schedule = optim.get("schedule")
    if not isinstance(schedule, str):
        return ""
    warmup = optim.get("warmup_fraction")
    return escape(schedule) + (f", after a warm-up of {warmup:.0%} of the steps" if is_number(warmup) else "")


def _lora(facts: RunFacts) -> str:
    lora = mapping(facts.description, "parts", "lora")
    if not lora:
        return ""
    modules = lora.get("target_modules")
    on = f", on {', '.join(map(str, modules))}" if isinstance(modules, list) else ""
    return escape(f"rank {lora.get('r')}, alpha {lora.get('lora_alpha')}, dropout {lora.get('lora_dropout')}{on}")


def _command(words: list[str], begun_from: str | None = None) -> str:
    """Return a command line in which no folder of this machine is named.

    Args:
        words: What was typed.
        begun_from: What stands for the first stage's run; None keeps what was typed.
    """
    told = []
    for word in words:
        if begun_from and word.startswith("init_from="):
            word = f"init_from={begun_from}/weights"
        told.append(shlex.quote(without_places(word)))
    return " ".join(["visllama train", *told])


def provenance_section(facts: RunFacts) -> str:
    """Return the versions, the source tree and the hashes that the figures rest on."""
    made = facts.provenance
    versions = [f"{escape(name)} {escape(v)}" for name, v in mapping(made, "versions").items()]
    git = mapping(made, "git")
    dirty = ", with changes that were not committed" if git.get("dirty") else ""
    rows = [
        ["versions", ", ".join(versions)],
        ["machine", escape(made.get("machine") or "")],
        ["visllama's commit", f"{escape(git['commit'])}{dirty}" if git.get("commit") else ""],
        ["plugins", escape(", ".join(map(str, made["plugins"]))) if isinstance(made.get("plugins"), list) else ""],
    ]
    for part, digest in mapping(facts.description, "base_sha256").items():
        rows.append([f"SHA-256 of the {escape(str(part).replace('_', ' '))}", escape(digest)])
    told = "The hashes are of the base models' tensors in bfloat16; loading refuses others."
    return "\n\n".join([table(["", ""], [row for row in rows if row[1]]), told])
