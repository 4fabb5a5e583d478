"""Build the parts of a training run from its configuration (sources, order, model), before any weight is loaded.

A source is where records come from. An item is one thing to learn from a record: a caption, a question or a
conversation.
"""

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
    """The parts of a run, before any weight is loaded, as `build_assembly` returns them.

    Attributes:
        parts: The description of the model, as `model_parts` returns it.
        model: The model, before its pretrained weights are loaded.
        text: The prompt, the length and the template of the training texts.
        initial: The content of `visllama.json` in the folder of `init_from`, whose weights the run starts from; None
            without `init_from`.
        train: The source of training records for each of `data.sources`, by its name there.
        val: The source of validation records for each of `data.sources`, by its name there; empty if
            `trainer.val_check_interval` is null, so that nothing is validated.
        order: The order of the training samples.
        judged_sources: The source of each evaluation after the training, by the evaluation's name; empty if `judge` is
            false.
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
    """Check a run's configuration, and build its sources, its order of samples and its model.

    The sources open the data, which for tars at an address reads the network. No pretrained weight is read: the encoder
    and the language model lie on the meta device (shapes without values), trained or not, and so does the whole model
    if `config.check_only` is true. The user's `config.loss` is put into the model. torch's random seed is set, and
    damage of the data is printed.

    Args:
        config: The configuration of the run, resolved; it is not changed.

    Raises:
        ConfigError: If the config contradicts itself, names something that does not exist, or its data is too damaged.
    """
    # Sources first: reading a folder is fast, and the model needs transformers, whose import takes seconds.
    sources = config.data.sources
    train = build_sources(sources, "train", config.plugins)
    val: dict[str, Source] = {}
    if config.trainer.val_check_interval:
        val = build_sources(sources, "val", config.plugins)

    check_faults(train, config.data.max_bad_fraction)
    num_items = sum(count_items(source) for source in train.values())
    num_steps = count_steps(config, num_items)
    order = _build_order(config, train)

    # Opened now, so that a missing file is found before the training.
    judged_on = config.judged_on if config.judge else {}
    judged = judged_sources(judged_on, config.plugins)

    check_parts(config)
    parts = model_parts(config)

    # Here, because it imports transformers.
    from visllama.model.weights import build_model, check_tensors, read_description

    # The connector draws its first weights here.
    torch.manual_seed(config.seed)
    device = torch.device("meta") if config.check_only else nullcontext()
    models_folder = config.paths["models"]
    with device:
        model = build_model(parts, config.stage.trainable, plugins=config.plugins, models=models_folder)

    if config.loss is not None:
        model.token_loss = build(config.loss, config.plugins)
    max_new_tokens = config.decoding.get("max_new_tokens", 0)
    check_positions(model, config.stage.max_text_tokens, max_new_tokens)

    text = text_settings(config, model)
    report_bare_captions(config, train)

    # A template that cannot be used is refused before the training, and not at the judging after it.
    for name, evaluation in judged_on.items():
        template = evaluation["template"]
        if template is not None:
            template_at(f"evaluation.{name}", template, model)

    initial = None
    if config.init_from:
        folder = Path(config.init_from)
        initial = read_description(folder)
        check_tensors(model, folder, initial)

    return Assembly(parts, model, text, initial, train, val, order, judged, num_steps)


def _build_order(config: TrainConfig, sources: Mapping[str, Source]) -> Order:
    """Build the order in which a run draws the items of its training sources.

    Args:
        config: The configuration of the run.
        sources: The training sources, by the names that `config.data.sources` gives them.
    """
    data = config.data
    items_of_shards = {name: source.shard_items for name, source in sources.items()}
    weights = {name: node.get("weight", 1.0) for name, node in data.sources.items()}
    return Order(items_of_shards, weights, config.stage.global_batch_size, config.seed, data.window_shards)


def check_faults(sources: Mapping[str, Source], max_bad_fraction: float) -> None:
    """Check how much of each source of tars cannot be read, and print it for each source that has some damage.

    The index of the tars lists files and records that cannot be read. Their number is divided by the number of all
    places, unreadable ones and readable records together. Sources of other classes than `ShardSource` are not checked.

    Args:
        sources: The training sources by name.
        max_bad_fraction: The largest fraction that may be damaged, from 0 to 1: the value of `data.max_bad_fraction`.

    Raises:
        ConfigError: If the fraction of one source is larger; the message names the reasons and the first three places.
    """
    for name, source in sources.items():
        # Only a source of tars knows its damage before the records are read.
        if not isinstance(source, ShardSource):
            continue

        faults = source.faults
        counts = sorted(faults.items())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts)

        num_bad = sum(faults.values())
        num_readable = len(source)
        fraction = num_bad / (num_bad + num_readable)
        if fraction > max_bad_fraction:
            first_faults = "; ".join(islice(source.tell_faults(), 3))
            allowed_fraction = f"{fraction + 0.01:.2f}"
            raise ConfigError(
                f"data.sources.{name}: beside {num_readable:,} records, {num_bad:,} places in its tars cannot be read "
                f"({reasons}): {first_faults}. visllama prepare source=shards from={source.path} check_only=true lists "
                f"them all; data.max_bad_fraction={allowed_fraction} trains on the others"
            )

        if num_bad:
            say(f"data.sources.{name}: {num_bad:,} places in its tars are not read: {reasons}")


def report_bare_captions(config: TrainConfig, sources: Mapping[str, Source]) -> None:
    """Print one line naming the sources whose captions have no prompt, if the run's template is not "plain".

    A template writes words around a prompt and its response. A caption without a prompt stands alone, so that the
    template changes nothing there. Nothing is printed if there is no such source.

    Args:
        config: The configuration of the run, with `stage.template` and the prompts.
        sources: The training sources, by the names that `config.data.sources` gives them.
    """
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
        listed_sources = ", ".join(bare_sources)
        first_source = bare_sources[0]
        say(
            f"stage.template={template_name} is not written around the captions of {listed_sources}:",
            f"they have no prompt (data.sources.{first_source}.prompt=TEXT).",
        )


def model_parts(config: TrainConfig) -> dict[str, dict]:
    """Return the description of a model that is kept with its weights and that `build_model` takes.

    Returns:
        For "vision_encoder", "connector" and "language_model" a dictionary of `kind`, the name of the part's class
        without its module, and `arguments`, the other values of its config node. With LoRA also `lora`, its settings.

    Raises:
        ConfigError: If `kind` means another class than the config names, or if a class cannot be used for its part.
    """
    parts: dict[str, dict] = {}
    lora = config.model.get("lora")

    for role, part in config.model.items():
        if role == "lora":
            continue

        arguments = dict(part)
        target = arguments.pop("_target_")
        module_name, _, kind = target.rpartition(".")
        class_by_kind = part_class(role, kind, config.plugins)
        class_by_target = class_of_target(role, target, config.plugins)
        if class_by_kind is not class_by_target:
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
    """Return the settings by which a run writes its training texts: the stage's prompt, text length and template.

    Args:
        config: The configuration of the run.
        model: The model, whose tokenizer has the template for `stage.template=tokenizer`.

    Raises:
        ConfigError: If there is no such template, or the tokenizer has none.
    """
    template = template_at("stage", config.stage.template, model)
    return TextSettings(config.stage.prompt, config.stage.max_text_tokens, template)


def template_at(key: str, chosen: str | Mapping[str, str], model: VisLlama) -> Template:
    """Return the template of a prompt and its response that a config value names or spells out.

    Args:
        key: The key of the config group that holds the value, as "stage"; only error messages use it.
        chosen: The value of the group's `template`: a name ("plain", "vicuna", ..., or "tokenizer" for the tokenizer's
            own), or the strings of a template by the names of `Template`'s attributes.
        model: The model, whose tokenizer is asked for "tokenizer".

    Raises:
        ConfigError: If there is no such template, or the tokenizer has none.
    """
    try:
        return find_template(chosen, model.tokenizer)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def check_positions(model: VisLlama, max_text_tokens: int, max_new_tokens: int) -> None:
    """Check that an image and the longest allowed text fit into the language model's positions.

    `max_text_tokens` and `max_new_tokens` are each added to the tokens of one image and the begin token. A model
    without a limit passes. A sample of several images is checked when it is made.

    Args:
        model: The model.
        max_text_tokens: The value of `stage.max_text_tokens`: tokens of a training text.
        max_new_tokens: The value of `decoding.max_new_tokens`: tokens that are generated.

    Raises:
        ConfigError: If either sum is larger than the number of positions; the message names the keys to lower.
    """
    num_positions = model.num_positions
    # The config of some language models names no limit.
    if num_positions is None:
        return

    num_image_tokens = model.num_image_tokens
    limits = {"stage.max_text_tokens": max_text_tokens, "decoding.max_new_tokens": max_new_tokens}
    for key, num_tokens in limits.items():
        longest = sample_length(1, num_image_tokens, num_tokens)
        if longest > num_positions:
            raise ConfigError(
                f"{key}={num_tokens} and model.connector.num_image_tokens={num_image_tokens} make samples of up to "
                f"{longest} tokens, and the language model has {num_positions} positions: lower one of them"
            )


def count_steps(config: TrainConfig, num_items: int) -> int:
    """Return the number of optimizer steps of a run.

    It is `trainer.max_steps` if that is given. Otherwise it is the number of whole batches of `stage.global_batch_size`
    in `stage.num_samples` samples, or, if that is null, in `stage.epochs` times all items. Samples at the end that make
    no whole batch are left out.

    Args:
        config: The configuration of the run.
        num_items: The number of items (captions, questions or conversations) of all training sources together.

    Raises:
        ConfigError: If there is no whole batch.
    """
    stage = config.stage
    # `epochs` may be a fraction of a pass.
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
