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
    """Return the configuration of each data source of a run, by the name of the source.

    The result is empty if the run's `config.yaml` is not known. An entry that is no mapping is left out.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    sources = {}
    for name, source in mapping(facts.config, "data", "sources").items():
        if isinstance(source, dict):
            sources[name] = source
    return sources


def is_scenes(source: Mapping) -> bool:
    """Return whether a data source is one of drawn scenes, whose classes come with the package.

    Args:
        source: The configuration of the data source, a value of `sources_of`. The class that its `_target_` names
            decides; the result is False if there is none.
    """
    target = str(source.get("_target_"))
    return target.startswith(_SCENES_TARGET)


def data_section(facts: RunFacts) -> str:
    """Return Markdown tables of the data sources that the weights were trained on; an empty text if none is known.

    A row has the name of a source, its share of the samples, the number of its samples, and a line about its content.
    If the run began from the weights of another run (`facts.first`, the first stage), that run's table comes first.

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

    shares = _shares(sources)
    train = mapping(facts.metrics, "train")
    num_samples = numbers(train).get("samples")

    rows = []
    for name, source in sources.items():
        share = shares.get(name)
        share_cell = _share_cell(share)
        samples_cell = _samples_cell(share, num_samples)
        description = _describe_source(name, source)
        rows.append([escape(name), share_cell, samples_cell, description])

    header = ["source", "share of the samples", "samples, about", "what it is"]
    section = table(header, rows)
    if num_samples is not None:
        section += (
            f"\n\n{num_samples:,} samples were seen in all; a sample is a picture with one text, or a text alone."
        )
    return section


def _shares(sources: Mapping[str, Mapping]) -> dict[str, float]:
    """Return the share of the samples that each data source has by its weight; a source of unknown share is left out.

    Args:
        sources: The data sources of one run, from `sources_of`.
    """
    # A config that somebody else wrote may hold anything as a weight.
    weights: dict[str, float] = {}
    for name, source in sources.items():
        weight = source.get("weight")
        if isinstance(weight, int | float) and is_number(weight):
            weights[name] = weight

    total_weight = sum(weights.values())
    if not total_weight:
        return {}
    return {name: weight / total_weight for name, weight in weights.items()}


def _share_cell(share: float | None) -> str:
    """Return the cell with a share of the samples in percent; an empty cell if it is not known."""
    if share is None:
        return ""
    if share >= 0.01:
        return f"{share:.0%}"
    return f"{share:.2%}"


def _samples_cell(share: float | None, num_samples: float | None) -> str:
    """Return the cell with the number of a source's samples; an empty cell if its share or all samples are unknown."""
    if share is None or num_samples is None:
        return ""
    num_samples_of_source = share * num_samples
    return f"{num_samples_of_source:,.0f}"


def _describe_source(name: str, source: Mapping) -> str:
    """Return a line of Markdown about what a data source holds, under which licence, and how it was filtered."""
    description = _describe_content(name, source)
    filters = mapping(source, "filter")
    if not filters:
        return description

    limits = ", ".join(f"{key} {limit}" for key, limit in filters.items())
    return f"{description}; filtered by {escape(limits)}"


def _describe_content(name: str, source: Mapping) -> str:
    """Return a line of Markdown about what a data source holds, and under which licence."""
    terms = find_data_terms(name)
    path = source.get("path")

    if is_scenes(source):
        holds = source.get("holds")
        return describe_scenes(holds)
    if terms is not None:
        return terms.description
    if isinstance(path, str):
        public_path = escape(without_places(path))
        return f"data of the trainer's own ({public_path})"
    return "data of the trainer's own"


def training_section(facts: RunFacts) -> str:
    """Return Markdown with tables of the settings of the training, and with the commands that repeat it.

    If the run began from the weights of another run (`facts.first`, the first stage), that run is described too, before
    this one. The text is empty if the weights do not lie in a run's folder.

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
    rows = []
    for label, value in _values(facts):
        if value:
            rows.append([label, value])

    if not rows:
        return []
    return [table(["", ""], rows)]


def _values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield pairs of a label and a setting of one training, as Markdown; a setting that is not known is ""."""
    yield from _length_values(facts)
    yield from _optimizer_values(facts)
    yield from _text_values(facts)
    yield "LoRA", _lora(facts)
    yield from _run_values(facts)


def _length_values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `_values` on which parts were trained, and for how long."""
    train = mapping(facts.metrics, "train")
    stage = mapping(facts.config, "stage")
    trainer = mapping(facts.config, "trainer")

    trained = [escape(name) for name in facts.description["trained"]]
    yield "trained parts", ", ".join(trained)

    batch_size = stage.get("global_batch_size")
    yield "global batch", _number(batch_size, " samples")
    num_steps = train.get("steps")
    yield "steps", _number(num_steps)

    # With either bound the epochs of the config say nothing about the length.
    max_steps = trainer.get("max_steps")
    num_samples = stage.get("num_samples")
    if is_number(max_steps) or is_number(num_samples):
        yield "length", "bounded by steps or samples, not by passes"
    else:
        epochs = stage.get("epochs")
        yield "passes over the data", _number(epochs)


def _optimizer_values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `_values` on the optimizer and its learning rate."""
    optim = mapping(facts.config, "optim")
    trained = facts.description["trained"]

    # A reader knows AdamW by its name, without the module that it comes from.
    target = str(optim.get("_target_") or "")
    _, _, class_name = target.rpartition(".")
    yield "optimizer", escape(class_name)

    yield "learning rate", _rates(optim, trained)
    yield "schedule", _schedule(optim)
    weight_decay = optim.get("weight_decay")
    yield "weight decay", _number(weight_decay)
    clip_norm = optim.get("clip_norm")
    yield "gradient norm, at most", _number(clip_norm)


def _text_values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `_values` on the texts that the model was trained on."""
    stage = mapping(facts.config, "stage")

    max_tokens = stage.get("max_text_tokens")
    yield "longest text", _number(max_tokens, " tokens, image tokens not counted")
    prompt = stage.get("prompt") or ""
    yield "prompt", escape(prompt)

    # A template of the user's own is a mapping, and has no name.
    template = stage.get("template")
    template_name = template if isinstance(template, str) else ""
    yield "template", escape(template_name)


def _run_values(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `_values` that the run itself has found out, such as the precision that `auto` has become."""
    train = mapping(facts.metrics, "train")
    provenance = facts.provenance

    precision = provenance.get("precision") or ""
    yield "precision", escape(precision)
    seed = provenance.get("seed")
    yield "seed", _number(seed)
    num_ranks = provenance.get("num_ranks")
    yield "ranks", _number(num_ranks)
    yield "time", _time(train)

    losses = []
    for key in ("train/loss", "val/loss"):
        loss = train.get(key)
        if is_number(loss):
            losses.append(f"{loss:.3f}")
    yield "last loss, training and validation", " and ".join(losses)


def _number(value: object, unit: str = "") -> str:
    """Return a number with commas between thousands and with its unit; an empty text if the value is no number."""
    return f"{value:,}{unit}" if is_number(value) else ""


def _time(train: Mapping) -> str:
    """Return the minutes of a training, with its samples a second if known; an empty text if the time is not known."""
    seconds = numbers(train).get("fit_seconds")
    if seconds is None:
        return ""

    samples_per_second = train.get("samples_per_second")
    minutes = seconds / 60
    if not is_number(samples_per_second):
        return f"{minutes:,.0f} minutes"
    return f"{minutes:,.0f} minutes, {samples_per_second:,.0f} samples a second"


def _rates(optim: Mapping, trained: list) -> str:
    """Return the learning rate, then the own rates of trained parts; an empty text if the first one is not known."""
    learning_rate = optim.get("lr")
    if not is_number(learning_rate):
        return ""

    rates = [f"{learning_rate:g}"]
    rate_by_part = mapping(optim, "lr_by_part")
    for part, rate in numbers(rate_by_part).items():
        # A rate of a frozen part was without effect.
        if part in trained:
            rates.append(f"{escape(part)} {rate:g}")
    return ", ".join(rates)


def _schedule(optim: Mapping) -> str:
    """Return the schedule of the learning rate, with its warm-up if known; an empty text if it is not known."""
    name = optim.get("schedule")
    warmup = optim.get("warmup_fraction")
    if not isinstance(name, str):
        return ""

    schedule = escape(name)
    if not is_number(warmup):
        return schedule
    return f"{schedule}, after a warm-up of {warmup:.0%} of the steps"


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
        names = ", ".join(str(module) for module in modules)
        values += f", on {names}"
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

        public_word = without_places(word)
        command.append(shlex.quote(public_word))

    return " ".join(command)


def provenance_section(facts: RunFacts) -> str:
    """Return a Markdown table of the software and the machine that produced the weights, and a note on its hashes.

    The rows are the versions of libraries, the machine, visllama's commit, the user's packages (plugins), and the
    SHA-256 hash of the tensors of each base model. A row whose value is not known is left out.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    machine = facts.provenance.get("machine") or ""
    rows = [
        ["versions", _versions_cell(facts)],
        ["machine", escape(machine)],
        ["visllama's commit", _commit_cell(facts)],
        ["plugins", _plugins_cell(facts)],
    ]

    digest_by_part = mapping(facts.description, "base_sha256")
    for part, digest in digest_by_part.items():
        name = escape(part.replace("_", " "))
        rows.append([f"SHA-256 of the {name}", escape(digest)])

    known_rows = [[label, cell] for label, cell in rows if cell]
    known_table = table(["", ""], known_rows)
    return f"{known_table}\n\nThe hashes are of the base models' tensors in bfloat16; loading refuses others."


def _versions_cell(facts: RunFacts) -> str:
    """Return the cell with the names and versions of libraries; an empty cell if none is known."""
    version_by_name = mapping(facts.provenance, "versions")
    versions = []
    for name, version in version_by_name.items():
        versions.append(f"{escape(name)} {escape(version)}")
    return ", ".join(versions)


def _commit_cell(facts: RunFacts) -> str:
    """Return the cell with visllama's commit, and whether its files were changed; an empty cell if it is not known."""
    git = mapping(facts.provenance, "git")
    commit = git.get("commit")
    if not commit:
        return ""

    cell = escape(commit)
    if git.get("dirty"):
        cell += ", with changes that were not committed"
    return cell


def _plugins_cell(facts: RunFacts) -> str:
    """Return the cell with the names of the user's packages; an empty cell if there are none."""
    # A file that somebody else wrote may hold anything here.
    plugins = facts.provenance.get("plugins")
    if not isinstance(plugins, list):
        return ""

    names = ", ".join(str(plugin) for plugin in plugins)
    return escape(names)
