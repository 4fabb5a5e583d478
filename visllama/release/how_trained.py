"""Write the sections of a model card on the training: the data, the settings, the command and the versions.

Trained weights may come from two runs: a first stage, and a second one that began from the first one's weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.markdown import escape, fenced, table, without_places
from visllama.release.licences import describe_scenes, find_data_terms
from visllama.release.run_facts import RunFacts

_SCENES_TARGET = "visllama.data.scenes."
"""The beginning of `_target_` of the data sources of drawn scenes, which come with the package."""


def sources_of(facts: RunFacts) -> dict[str, dict]:
    """Return the configuration of each data source of a run by name; empty if the run's config is not known.

    Entries that are no mapping, which a run does not write, are left out.
    """
    sources = mapping(facts.config, "data", "sources")
    return {name: source for name, source in sources.items() if isinstance(source, dict)}


def is_scenes(source: Mapping) -> bool:
    """Return whether the configuration of a data source names one of drawn scenes, which come with the package.

    Args:
        source: A value of `sources_of`; its `_target_` decides.
    """
    return str(source.get("_target_")).startswith(_SCENES_TARGET)


def data_section(facts: RunFacts) -> str:
    """Return Markdown tables of the data sources that the weights were trained on; an empty text if none is known.

    Each table names a source, its share of the samples, the number of samples and the content. With a first stage there
    are two tables, the first stage's first.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    section = _sources_table(facts)
    first_section = "" if facts.first is None else _sources_table(facts.first)
    if not first_section:
        return section
    return "\n\n".join(["**First stage**", first_section, "**Second stage**", section])


def _sources_table(facts: RunFacts) -> str:
    """Return the Markdown table of the data sources of one run, without its first stage; "" if none is known."""
    sources = sources_of(facts)
    if not sources:
        return ""

    # A config that somebody else wrote may hold anything as a weight.
    weights = numbers({name: source.get("weight") for name, source in sources.items()})
    total_weight = sum(weights.values())
    num_samples = numbers(mapping(facts.metrics, "train")).get("samples")

    rows = []
    for name, source in sources.items():
        share_cell = ""
        samples_cell = ""
        if name in weights and total_weight:
            share = weights[name] / total_weight
            share_cell = f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
            if num_samples is not None:
                samples_cell = f"{share * num_samples:,.0f}"

        rows.append([escape(name), share_cell, samples_cell, _describe_source(name, source)])

    section = table(["source", "share of the samples", "samples, about", "what it is"], rows)
    if num_samples is not None:
        section += (
            f"\n\n{num_samples:,} samples were seen in all; a sample is a picture with one text, or a text alone."
        )
    return section


def _describe_source(name: str, source: Mapping) -> str:
    """Return a line of Markdown about what a data source holds, under which licence, and how it was filtered."""
    terms = find_data_terms(name)
    path = source.get("path")
    if is_scenes(source):
        description = describe_scenes(source.get("holds"))
    elif terms is not None:
        description = terms.description
    elif isinstance(path, str):
        description = f"data of the trainer's own ({escape(without_places(path))})"
    else:
        description = "data of the trainer's own"

    limits = [f"{key} {limit}" for key, limit in mapping(source, "filter").items()]
    if limits:
        description += f"; filtered by {escape(', '.join(limits))}"
    return description


def training_section(facts: RunFacts) -> str:
    """Return Markdown with tables of the settings of the training, and with the commands that repeat it.

    With a first stage both stages are described, the first one first. The text is empty if the weights do not lie in a
    run's folder.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    if facts.folder is None:
        return ""

    paragraphs = []
    if facts.first is not None:
        paragraphs.append("**First stage**")
        paragraphs += _values_table(facts.first)
        paragraphs.append("**Second stage**, which began from the first one's weights")
    paragraphs += _values_table(facts)
    paragraphs += _commands(facts)

    return "\n\n".join(paragraphs)


def _commands(facts: RunFacts) -> list[str]:
    """Return the paragraphs with the commands that repeat a run; an empty list if its command is not known."""
    if facts.words is None:
        return []

    # Without the first stage's own command, the second one names the folder that was typed.
    if facts.first is None or facts.first.words is None:
        commands = [_command(facts.words)]
        introduction = "This command repeats it"
    else:
        commands = [_command(facts.first.words), _command(facts.words, first_run="RUN")]
        introduction = "These commands repeat it; RUN is the folder that the first one names at its end"
    if any("PATH" in command for command in commands):
        introduction += "; PATH stands for a folder of yours"
    return [f"{introduction}.", fenced(commands, "bash")]


def _values_table(facts: RunFacts) -> list[str]:
    """Return a list with the table of the known settings of one stage; an empty list if none is known."""
    rows = [[label, value] for label, value in _values(facts) if value]
    return [table(["", ""], rows)] if rows else []


def _values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield pairs of a label and a setting of one training, as Markdown; a setting that is not known is ""."""
    train = mapping(facts.metrics, "train")
    stage = mapping(facts.config, "stage")
    optim = mapping(facts.config, "optim")
    trainer = mapping(facts.config, "trainer")
    provenance = facts.provenance
    trained = facts.description["trained"]

    yield "trained parts", ", ".join(escape(name) for name in trained)
    yield "global batch", _number(stage.get("global_batch_size"), " samples")
    yield "steps", _number(train.get("steps"))

    # With either bound the epochs of the config say nothing about the length.
    if is_number(trainer.get("max_steps")) or is_number(stage.get("num_samples")):
        yield "length", "bounded by steps or samples, not by passes"
    else:
        yield "passes over the data", _number(stage.get("epochs"))

    # A reader knows AdamW by its name, without the module that it comes from.
    optimizer = str(optim.get("_target_") or "")
    yield "optimizer", escape(optimizer.rpartition(".")[2])
    yield "learning rate", _rates(optim, trained)
    yield "schedule", _schedule(optim)
    yield "weight decay", _number(optim.get("weight_decay"))
    yield "gradient norm, at most", _number(optim.get("clip_norm"))

    yield "longest text", _number(stage.get("max_text_tokens"), " tokens, image tokens not counted")
    yield "prompt", escape(stage.get("prompt") or "")
    template = stage.get("template")
    yield "template", escape(template) if isinstance(template, str) else ""
    yield "LoRA", _lora(facts)

    # What the run itself has found out, such as the precision of `auto`.
    yield "precision", escape(provenance.get("precision") or "")
    yield "seed", _number(provenance.get("seed"))
    yield "ranks", _number(provenance.get("num_ranks"))
    yield "time", _time(train)
    losses = numbers({key: train.get(key) for key in ("train/loss", "val/loss")})
    yield "last loss, training and validation", " and ".join(f"{loss:.3f}" for loss in losses.values())


def _number(value: object, unit: str = "") -> str:
    """Return a number with commas between thousands and with its unit; an empty text if the value is no number."""
    return f"{value:,}{unit}" if is_number(value) else ""


def _time(train: Mapping) -> str:
    """Return the minutes of a training, with its samples a second if known; an empty text if the time is not known."""
    seconds = numbers(train).get("fit_seconds")
    if seconds is None:
        return ""

    minutes = f"{seconds / 60:,.0f} minutes"
    samples_per_second = train.get("samples_per_second")
    if not is_number(samples_per_second):
        return minutes
    return f"{minutes}, {samples_per_second:,.0f} samples a second"


def _rates(optim: Mapping, trained: list) -> str:
    """Return the learning rate, then the own rates of trained parts; an empty text if the first one is not known."""
    learning_rate = optim.get("lr")
    if not is_number(learning_rate):
        return ""

    # A rate of a frozen part was without effect.
    rates = [f"{learning_rate:g}"]
    for part, rate in numbers(mapping(optim, "lr_by_part")).items():
        if part in trained:
            rates.append(f"{escape(part)} {rate:g}")
    return ", ".join(rates)


def _schedule(optim: Mapping) -> str:
    """Return the schedule of the learning rate, with its warm-up if known; an empty text if it is not known."""
    schedule = optim.get("schedule")
    if not isinstance(schedule, str):
        return ""

    warmup = optim.get("warmup_fraction")
    if not is_number(warmup):
        return escape(schedule)
    return f"{escape(schedule)}, after a warm-up of {warmup:.0%} of the steps"


def _lora(facts: RunFacts) -> str:
    """Return the rank and the other settings of the LoRA adapter; an empty text if there is none."""
    lora = mapping(facts.description, "parts", "lora")
    if not lora:
        return ""

    rank = lora.get("r")
    alpha = lora.get("lora_alpha")
    dropout = lora.get("lora_dropout")
    values = f"rank {rank}, alpha {alpha}, dropout {dropout}"

    # A pattern instead of a list would tell a reader little.
    modules = lora.get("target_modules")
    if isinstance(modules, list):
        values += f", on {', '.join(map(str, modules))}"
    return escape(values)


def _command(words: list[str], first_run: str | None = None) -> str:
    """Return a command line `visllama train ...` in which no folder of this machine is named.

    Args:
        words: The words that were typed after `visllama train`, one for each argument of the command line.
        first_run: A placeholder for the folder of the first stage's run in `init_from=`; None keeps what was typed.
    """
    command = ["visllama train"]
    for word in words:
        # The folder of another machine's run means nothing to a reader.
        if first_run is not None and word.startswith("init_from="):
            word = f"init_from={first_run}/weights"
        command.append(shlex.quote(without_places(word)))

    return " ".join(command)


def provenance_section(facts: RunFacts) -> str:
    """Return a Markdown table of what produced the weights, as far as it is known, and a note on its hashes.

    It names the versions of libraries, the machine, visllama's commit, the user's packages, and the SHA-256 of each
    base model.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    provenance = facts.provenance
    versions = [f"{escape(name)} {escape(version)}" for name, version in mapping(provenance, "versions").items()]
    git = mapping(provenance, "git")
    commit = escape(git["commit"]) if git.get("commit") else ""
    if commit and git.get("dirty"):
        commit += ", with changes that were not committed"

    # A file that somebody else wrote may hold anything here.
    plugins = provenance.get("plugins")
    plugin_names = [str(plugin) for plugin in plugins] if isinstance(plugins, list) else []

    rows = [
        ["versions", ", ".join(versions)],
        ["machine", escape(provenance.get("machine") or "")],
        ["visllama's commit", commit],
        ["plugins", escape(", ".join(plugin_names))],
    ]
    for part, digest in mapping(facts.description, "base_sha256").items():
        name = escape(part.replace("_", " "))
        rows.append([f"SHA-256 of the {name}", escape(digest)])

    known_rows = [row for row in rows if row[1]]
    note = "The hashes are of the base models' tensors in bfloat16; loading refuses others."
    return "\n\n".join([table(["", ""], known_rows), note])
