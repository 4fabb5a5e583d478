"""Build the parts of a run from its configuration (sources, order, model), before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from visllama.config.dry_run import check_parts
from visllama.config.instantiate import build
from visllama.config.schema import TrainConfig
from visllama.console import say
from visllama.data.order import Order
from visllama.data.shards.source import ShardSource
from visllama.data.source import Source, count_items
from visllama.data.sources import build_sources, judged_sources
from visllama.errors import ConfigError
from visllama.plugins import class_of_target, part_class
from visllama.text.settings import TextSettings
from visllama.text.template import Template
from visllama.text.templates import find_template
from visllama.text.tokens import sample_length

if TYPE_CHECKING:
    from visllama.model.visllama import VisLlama


class Assembly(NamedTuple):
    """The parts of a run, before any weight is loaded.

    Attributes:
        parts: The kind and the arguments of each part of the model, by the part's name.
        model: The model, without weights.
        text: The settings by which texts are written.
        initial: The description of the weights to start from; None where there are none.
        train: The training source of each of `data.sources`.
        val: The validation source of each; empty if `trainer.val_check_interval` is null, so that nothing is validated.
        order: The order of the training samples.
        judged_sources: The source of each evaluation; empty if `judge` is false.
        num_steps: The number of optimizer steps.
    """

    parts: dict[str, dict]
    model: VisLlama
    text: TextSettings
    initial: dict | None
    train: dict[str, Source]
    val: dict[str, Source]
    order: Order
    judged_sources: dict[str, Source]
    num_steps: int


def build_assembly(config: TrainConfig) -> Assembly:
    """Build the sources, then the model, its frozen parts (with `check_only` all of them) on the meta device.

    Raises:
        ConfigError: If the config contradicts itself, or names something that does not exist.
    """
    # Sources first: reading a folder is fast, and the model needs transformers, whose import takes seconds.
    sources = config.data.sources
    train = build_sources(sources, "train", config.plugins)
    val = build_sources(sources, "val", config.plugins) if config.trainer.val_check_interval else {}

    check_faults(train, config.data.max_bad_fraction)
    num_items = sum(count_items(source) for source in train.values())
    num_steps = count_steps(config, num_items)

    order = Order(
        {name: source.shard_items for name, source in train.items()},
        {name: node.get("weight", 1.0) for name, node in sources.items()},
        config.stage.global_batch_size,
        config.seed,
        config.data.window_shards,
    )
    judged_on = config.judged_on if config.judge else {}
    judged = judged_sources(judged_on, config.plugins)

    check_parts(config)
    parts = model_parts(config)
    # Here, because it imports transformers.
    from visllama.model.weights import build_model, check_tensors, read_description

    # The trained parts draw their first weights here.
    torch.manual_seed(config.seed)
    device = torch.device("meta") if config.check_only else nullcontext()
    with device:
        model = build_model(parts, config.stage.trainable, plugins=config.plugins, models=config.paths["models"])
    if config.loss is not None:
        model.token_loss = build(config.loss, config.plugins)
    check_positions(model, config.stage.max_text_tokens, config.decoding.get("max_new_tokens", 0))

    text = text_settings(config, model)
    report_bare_captions(config, train)
    # A template that cannot be used is refused before the training, and not at the judging after it.
    for name, evaluation in judged_on.items():
        if evaluation["template"] is not None:
            template_at(f"evaluation.{name}", evaluation["template"], model)

    initial = None
    if config.init_from:
        initial = read_description(Path(config.init_from))
        check_tensors(model, Path(config.init_from), initial)

    return Assembly(parts, model, text, initial, train, val, order, judged, num_steps)


def check_faults(sources: Mapping[str, Source], max_bad_fraction: float) -> None:
    """Refuse sources of which too much is damaged, and report the damage of the others.

    Args:
        sources: The training sources by name.
        max_bad_fraction: The value of `data.max_bad_fraction`.

    Raises:
        ConfigError: If a larger part of a source's tars is damaged; the message names the reasons.
    """
    for name, source in sources.items():
        # Only a source of tars knows its damage before the records are read.
        if not isinstance(source, ShardSource):
            continue

        faults = source.faults
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(faults.items()))

        num_bad = sum(faults.values())
        fraction = num_bad / (num_bad + len(source))
        if fraction > max_bad_fraction:
            first_faults = "; ".join(islice(source.tell_faults(), 3))
            raise ConfigError(
                f"data.sources.{name}: beside {len(source):,} records, {num_bad:,} places in its tars cannot be read "
                f"({reasons}): {first_faults}. visllama prepare source=shards from={source.path} check_only=true lists "
                f"them all; data.max_bad_fraction={fraction + 0.01:.2f} trains on the others"
            )

        if num_bad:
            say(f"data.sources.{name}: {num_bad:,} places in its tars are not read: {reasons}")


def report_bare_captions(config: TrainConfig, sources: Mapping[str, Source]) -> None:
    """Print which sources have captions without a prompt: a template's words have nothing there to stand around."""
    template = config.stage.template
    if template == "plain":
        return

    bare_sources = []
    for name, source in sources.items():
        source_prompt = config.data.sources[name].get("prompt")
        prompt = config.stage.prompt if source_prompt is None else source_prompt
        if not prompt and "captions" in source.kinds:
            bare_sources.append(name)

    if bare_sources:
        template_name = template if isinstance(template, str) else "{...}"
        say(
            f"stage.template={template_name} is not written around the captions of {', '.join(bare_sources)}:",
            f"they have no prompt (data.sources.{bare_sources[0]}.prompt=TEXT).",
        )


def model_parts(config: TrainConfig) -> dict[str, dict]:
    """Return the kind (its class's name) and the arguments of each part of the model, by the part's name.

    Raises:
        ConfigError: If another class has the same name: the trained weights name a part's class without its module.
    """
    parts: dict[str, dict] = {}
    lora = config.model.get("lora")

    for role, part in config.model.items():
        if role == "lora":
            continue

        arguments = dict(part)
        target = arguments.pop("_target_")
        module_name, _, kind = target.rpartition(".")
        if part_class(role, kind, config.plugins) is not class_of_target(role, target, config.plugins):
            raise ConfigError(
                f"model.{role}._target_={target}: another class is called {kind} too: rename it, or give the very "
                f"module as plugins=[{module_name}]"
            )
        parts[role] = {"kind": kind, "arguments": arguments}

    # LoRA is no class of its own: its settings change the language model.
    if lora is not None:
        parts["lora"] = lora
    return parts


def text_settings(config: TrainConfig, model: VisLlama) -> TextSettings:
    """Return the settings by which the texts of a run are written: prompt, length and template."""
    template = template_at("stage", config.stage.template, model)
    return TextSettings(config.stage.prompt, config.stage.max_text_tokens, template)


def template_at(key: str, chosen: str | Mapping[str, str], model: VisLlama) -> Template:
    """Return the template that a config names.

    Args:
        key: The key of the group with the template, for error messages.
        chosen: The value of `template`: a name, or the texts of a template.
        model: The model, whose tokenizer may have a template of its own.

    Raises:
        ConfigError: If there is no such template, or the tokenizer has none.
    """
    try:
        return find_template(chosen, model.tokenizer)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def check_positions(model: VisLlama, max_text_tokens: int, max_new_tokens: int) -> None:
    """Refuse samples of one image, and generated texts, longer than the language model's positions.

    A sample of several images is checked by itself, when it is made.

    Args:
        model: The model.
        max_text_tokens: The value of `stage.max_text_tokens`.
        max_new_tokens: The value of `decoding.max_new_tokens`.

    Raises:
        ConfigError: If one of the two is too large; the message names the keys to lower.
    """
    num_positions = model.num_positions
    if num_positions is None:
        return

    limits = {"stage.max_text_tokens": max_text_tokens, "decoding.max_new_tokens": max_new_tokens}
    for key, num_tokens in limits.items():
        longest = sample_length(1, model.num_image_tokens, num_tokens)
        if longest > num_positions:
            raise ConfigError(
                f"{key}={num_tokens} and model.connector.num_image_tokens={model.num_image_tokens} make samples of up "
                f"to {longest} tokens, and the language model has {num_positions} positions: lower one of them"
            )


def count_steps(config: TrainConfig, num_items: int) -> int:
    """Return the number of optimizer steps of a run.

    It is `trainer.max_steps`, or else the number of whole batches in `stage.num_samples` samples or in `stage.epochs`
    passes. Samples of the last pass that make no whole batch are left out.

    Args:
        config: The configuration of the run.
        num_items: The number of items of all sources together.

    Raises:
        ConfigError: If there is no whole batch.
    """
    stage = config.stage
    num_samples = stage.num_samples or int(stage.epochs * num_items)
    num_steps = config.trainer.max_steps or num_samples // stage.global_batch_size

    if num_steps == 0:
        if stage.num_samples:
            cause = f"stage.num_samples={num_samples}"
        else:
            cause = f"stage.epochs={stage.epochs} over {num_items} items"
        raise ConfigError(
            f"{cause} makes no whole batch of stage.global_batch_size={stage.global_batch_size}: lower the batch "
            f"size, or give trainer.max_steps"
        )

    return num_steps
