"""What a run is made of: the configuration turned into sources, order and model, before any weight is loaded."""

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
    """What a run is made of, before any weight is loaded."""

    parts: dict[str, dict]
    model: VisLlama
    text: TextSettings
    initial: dict | None
    """The description of the weights to start from."""
    train: dict[str, Source]
    val: dict[str, Source]
    """Empty where `trainer.val_check_interval` is null: nothing is validated then."""
    order: Order
    judged_sources: dict[str, Source]
    """The source of each evaluation; empty where `judge` is false."""
    num_steps: int


def build_assembly(config: TrainConfig) -> Assembly:
    """Build the sources, then the model, its frozen parts (with `check_only` all) on the meta device."""
    sources = config.data.sources
    train = build_sources(sources, "train", config.plugins)
    val = build_sources(sources, "val", config.plugins) if config.trainer.val_check_interval else {}
    check_faults(train, config.data.max_bad_fraction)
    num_steps = count_steps(config, sum(map(count_items, train.values())))
    order = Order(
        {name: source.shard_items for name, source in train.items()},
        {name: node.get("weight", 1.0) for name, node in config.data.sources.items()},
        config.stage.global_batch_size,
        config.seed,
        config.data.window_shards,
    )
    judged_on = config.judged_on if config.judge else {}
    judged = judged_sources(judged_on, config.plugins)
    check_parts(config)
    parts = model_parts(config)
    from visllama.model.weights import build_model, check_tensors, read_description

    torch.manual_seed(config.seed)
    with torch.device("meta") if config.check_only else nullcontext():
        model = build_model(parts, config.stage.trainable, plugins=config.plugins, models=config.paths["models"])
    if config.loss is not None:
        model.token_loss = build(config.loss, config.plugins)
    check_positions(model, config.stage.max_text_tokens, config.decoding.get("max_new_tokens", 0))
    text = text_settings(config, model)
    report_bare_captions(config, train)
    for name, evaluation in judged_on.items():
        if evaluation["template"] is not None:
            template_at(f"evaluation.{name}", evaluation["template"], model)
    initial = None
    if config.init_from:
        initial = read_description(Path(config.init_from))
        check_tensors(model, Path(config.init_from), initial)
    return Assembly(parts, model, text, initial, train, val, order, judged, num_steps)


def check_faults(sources: Mapping[str, Source], max_bad_fraction: float) -> None:
    """Refuse sources of which too much is damaged, and tell of what is.

    Raises:
        ConfigError: Naming the reasons.
    """
    for name, source in sources.items():
        if not isinstance(source, ShardSource):
            continue
        faults = source.faults
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(faults.items()))
        bad = sum(faults.values())
        fraction = bad / (bad + len(source))
        if fraction > max_bad_fraction:
            first = "; ".join(islice(source.tell_faults(), 3))
            raise ConfigError(
                f"data.sources.{name}: beside {len(source):,} records, {bad:,} places in its tars cannot be read "
                f"({told}): {first}. visllama prepare source=shards from={source.path} check_only=true lists them all; "
                f"data.max_bad_fraction={fraction + 0.01:.2f} trains on the others"
            )
        if bad:
            say(f"data.sources.{name}: {bad:,} places in its tars are not read: {told}")


def report_bare_captions(config: TrainConfig, sources: Mapping[str, Source]) -> None:
    """Name the sources whose captions have no prompt: there is nothing that a template's words could stand around."""
    if config.stage.template == "plain":
        return
    bare = []
    for name, source in sources.items():
        own = config.data.sources[name].get("prompt")
        prompt = config.stage.prompt if own is None else own
        if not prompt and "captions" in source.kinds:
            bare.append(name)
    if bare:
        chosen = config.stage.template if isinstance(config.stage.template, str) else "{...}"
        say(
            f"stage.template={chosen} is not written around the captions of {', '.join(bare)}:",
            f"they have no prompt (data.sources.{bare[0]}.prompt=TEXT).",
        )


def model_parts(config: TrainConfig) -> dict[str, dict]:
    """Describe the model by each part's kind (its class's name) and arguments.

    Raises:
        ConfigError: If a class could not be found again by its name, as the trained weights will have to.
    """
    described = {}
    lora = config.model.get("lora")
    for role, part in config.model.items():
        if role == "lora":
            continue
        arguments = dict(part)
        target = arguments.pop("_target_")
        kind = target.rpartition(".")[2]
        if part_class(role, kind, config.plugins) is not class_of_target(role, target, config.plugins):
            raise ConfigError(
                f"model.{role}._target_={target}: another class is called {kind} too: rename it, or give the very "
                f"module as plugins=[{target.rpartition('.')[0]}]"
            )
        described[role] = {"kind": kind, "arguments": arguments}
    return described if lora is None else described | {"lora": lora}


def text_settings(config: TrainConfig, model: VisLlama) -> TextSettings:
    """Return how the texts of a run are made."""
    template = template_at("stage", config.stage.template, model)
    return TextSettings(config.stage.prompt, config.stage.max_text_tokens, template)


def template_at(key: str, chosen: str | Mapping[str, str], model: VisLlama) -> Template:
    """Return the template that stands in a config below `key`.

    Raises:
        ConfigError: If it is none, or the tokenizer has none of its own.
    """
    try:
        return find_template(chosen, model.tokenizer)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def check_positions(model: VisLlama, max_text_tokens: int, max_new_tokens: int) -> None:
    """Refuse samples of one image, and generated texts, longer than the language model's positions.

    Samples of several images are held to the positions one by one, as they are made.

    Raises:
        ConfigError: Naming what to lower.
    """
    most = model.num_positions
    for key, tokens in (("stage.max_text_tokens", max_text_tokens), ("decoding.max_new_tokens", max_new_tokens)):
        longest = sample_length(1, model.num_image_tokens, tokens)
        if most is not None and longest > most:
            raise ConfigError(
                f"{key}={tokens} and model.connector.num_image_tokens={model.num_image_tokens} make samples of up to "
                f"{longest} tokens, and the language model has {most} positions: lower one of them"
            )


def count_steps(config: TrainConfig, num_items: int) -> int:
    """Return the number of optimizer steps: `trainer.max_steps`, or what `stage.num_samples` or `stage.epochs` makes.

    Steps are whole batches: of the last pass, what makes no whole batch is left out.

    Args:
        config: The configuration of the run.
        num_items: Items of all sources together.

    Raises:
        ConfigError: If that is none.
    """
    num_samples = config.stage.num_samples or int(config.stage.epochs * num_items)
    steps = config.trainer.max_steps or num_samples // config.stage.global_batch_size
    if steps == 0:
        told = f"stage.epochs={config.stage.epochs} over {num_items} items"
        told = f"stage.num_samples={num_samples}" if config.stage.num_samples else told
        raise ConfigError(
            f"{told} makes no whole batch of stage.global_batch_size={config.stage.global_batch_size}: lower the batch "
            f"size, or give trainer.max_steps"
        )
    return steps
