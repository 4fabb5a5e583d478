"""Judge a model: run every evaluation of a configuration, generating and scoring texts, and write its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from visllama.config.schema import EvaluateConfig, TrainConfig
from visllama.data.samples import SampleMaker
from visllama.data.source import Source
from visllama.data.sources import fingerprint, judged_sources
from visllama.evaluation.caption_task import check_images, judge_captions
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.prompts import Prompts, prompts_of_source
from visllama.evaluation.task import Task
from visllama.evaluation.vqa_task import check_questions, judge_answers
from visllama.machine.devices import find_device, find_precision, frozen_dtype
from visllama.model.visllama import VisLlama
from visllama.model.weights import hash_weights, load_weights
from visllama.text.settings import TextSettings

_TASKS = {"caption": judge_captions, "vqa": judge_answers}
_CHECKS = {"caption": check_images, "vqa": check_questions}


class PlacingStrategy(Protocol):
    """A strategy that spreads a model over ranks (processes that share the work), as far as judging uses it.

    `visllama.parallel` has such strategies.

    Attributes:
        is_sharded: Whether each rank holds only a part of the model's weights.
    """

    is_sharded: bool

    def prepare(self, model: VisLlama, dtype: torch.dtype) -> None:
        """Move or shard a model in place, as this strategy needs it to generate.

        Args:
            model: The model, with its weights loaded.
            dtype: The dtype of the frozen weights.
        """


@dataclass(frozen=True)
class JudgeSettings:
    """The settings of judging that hold for all evaluations; `of_config` makes them.

    Attributes:
        accelerator: Lightning's name of the kind of device ("cuda", "mps", "cpu"), or "auto".
        precision: Lightning's name of the precision, for example "bf16-mixed". It may not be "auto": `find_precision`
            turns that into a name.
        num_threads: The number of CPU threads that `judge_weights` lets torch use.
        decoding: Arguments of transformers' `generate`; an evaluation's own `decoding` replaces them key by key.
        plugins: The names of the user's packages, from which parts of the model and sources may come.
        models: The folder of downloaded base models.
        seed: The seed of the tokens that are drawn if a decoding samples.
        refuses_others: Whether predictions that the folder already holds, and that other weights, prompts, decodings
            or data have made, are refused; otherwise they are overwritten.
    """

    accelerator: str
    precision: str
    num_threads: int
    decoding: Mapping[str, Any]
    plugins: Sequence[str]
    models: str
    seed: int = 0
    refuses_others: bool = False

    @classmethod
    def of_config(cls, config: TrainConfig | EvaluateConfig) -> JudgeSettings:
        """Return the settings that the configuration of the verb `train` or `evaluate` holds.

        A precision of "auto" is replaced by the one of this machine. `refuses_others` is true only for `evaluate` with
        `resume=`.
        """
        trainer = config.trainer
        return cls(
            accelerator=trainer.accelerator,
            precision=find_precision(trainer.precision, trainer.accelerator),
            num_threads=trainer.threads,
            decoding=config.decoding,
            plugins=tuple(config.plugins),
            models=config.paths["models"],
            seed=config.seed,
            refuses_others=isinstance(config, EvaluateConfig) and bool(config.resume),
        )


def sample_maker(model: VisLlama, text: TextSettings) -> SampleMaker:
    """Build the `SampleMaker` of a model, which turns a record into token ids and pictures as the model reads them.

    Args:
        model: The model, whose tokenizer, picture transform and number of positions the maker takes over.
        text: The text settings of the model's training: prompt, template and longest text. The description beside
            trained weights holds them: `TextSettings.from_dict(description["text"])`.
    """
    return SampleMaker(
        model.tokenizer,
        model.vision_encoder.transform,
        model.num_image_tokens,
        text.max_text_tokens,
        text.prompt,
        text.template,
        num_positions=model.num_positions,
    )


def read_prompts(evaluations: Mapping[str, Mapping], sources: Mapping[str, Source]) -> dict[str, Prompts]:
    """Read the records of every evaluation, check them, and return the prompts by the evaluation's name.

    No model is needed, so that wrong data is found before one is loaded.

    Args:
        evaluations: The configuration of each evaluation by its name, as plain values.
        sources: The source of each evaluation by its name.

    Raises:
        ConfigError: If a record cannot be read, an id comes more than once, or an evaluation's metrics do not apply to
            its records. The message names the first five ids.
    """
    prompts = {}
    for name, config in evaluations.items():
        prompts[name] = prompts_of_source(sources[name], name, config.get("num_images"))
        check = _CHECKS[config["task"]]
        check(prompts[name], name, config)
    return prompts


def judge(
    model: VisLlama,
    maker: SampleMaker,
    evaluations: Mapping[str, Mapping],
    sources: Mapping[str, Source],
    settings: JudgeSettings,
    folder: Path,
    weights_key: str,
    prompts: Mapping[str, Prompts] | None = None,
) -> dict:
    """Run evaluations one after the other, and write each one's results to `folder/evaluations/NAME/` when it ends.

    The model is moved to the device of `settings` and stays in evaluation mode. If several ranks share the work, each
    of them has to call this function.

    Args:
        model: A model with all its weights.
        maker: The maker that prepares the model's inputs, as `sample_maker` returns it. An evaluation's own `prompt` or
            `template` replaces the maker's.
        evaluations: The configuration of each evaluation by its name, as plain values.
        sources: The source of each evaluation by its name, as `judged_sources` returns them.
        settings: The settings that hold for all evaluations.
        folder: The run's folder. Folders below it are made if they are missing.
        weights_key: The hash of the model's weights, as `hash_weights` returns it. The hash keeps predictions of other
            weights from being mixed with those of this model.
        prompts: The prompts of each evaluation by its name, as `read_prompts` returns them; None reads them here.

    Returns:
        The entry of each evaluation by its name, as metrics.json holds them under `evaluations`. That file is not
        written here. On all ranks but the first the entries are empty.

    Raises:
        ConfigError: If an evaluation does not fit the model or its records.
    """
    if prompts is None:
        prompts = read_prompts(evaluations, sources)
    device = find_device(settings.accelerator)
    model.to(device).eval()

    # All captioners are built first, so that a setting that does not fit is refused before anything is judged.
    captioners = {}
    for name, config in evaluations.items():
        judged_maker = maker.as_judged(config.get("prompt"), config.get("template"))
        decoding = decoding_of(config, settings)
        captioners[name] = Captioner(judged_maker, decoding, config["batch_size"], settings.seed)

    results = {}
    # With "bf16-true" the weights themselves are bf16, and nothing has to be cast.
    uses_autocast = settings.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_autocast):
        for name, config in evaluations.items():
            task = _make_task(name, config, sources[name], prompts[name], settings, folder, weights_key)
            task.folder.mkdir(parents=True, exist_ok=True)
            judge_task = _TASKS[config["task"]]
            results[name] = judge_task(model, captioners[name], task)
    return results


def _make_task(
    name: str,
    config: Mapping,
    source: Source,
    prompts: Prompts,
    settings: JudgeSettings,
    folder: Path,
    weights_key: str,
) -> Task:
    """Return the `Task` of one evaluation; the arguments are those of `judge`, of this evaluation alone."""
    return Task(
        name=name,
        config=config,
        source=source,
        prompts=prompts,
        folder=folder / "evaluations" / name,
        plugins=settings.plugins,
        made_by={"weights": weights_key, **texts_made_by(config, source, settings)},
        refuses_others=settings.refuses_others,
    )


def decoding_of(config: Mapping, settings: JudgeSettings) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` for an evaluation, as a new mapping.

    Args:
        config: The configuration of the evaluation, whose own `decoding` replaces the settings' key by key.
        settings: The settings that hold for all evaluations.
    """
    return {**settings.decoding, **config.get("decoding", {})}


def texts_made_by(config: Mapping, source: Source, settings: JudgeSettings) -> dict[str, object]:
    """Return everything but the weights that decides the texts of an evaluation, by name and as plain values.

    Texts of an earlier judgement are only kept if all of these are equal: prompt, template, decoding, seed, precision,
    split, records and number of images.

    Args:
        config: The configuration of the evaluation.
        source: The source of the evaluation.
        settings: The settings that hold for all evaluations.
    """
    decoding = decoding_of(config, settings)
    # A seed changes nothing where no token is drawn, and is no reason to refuse texts that are there already.
    seed = settings.seed if decoding.get("do_sample") else None
    return {
        "prompt": config.get("prompt"),
        "template": config.get("template"),
        "decoding": decoding,
        "seed": seed,
        "precision": settings.precision,
        "split": config["split"],
        "records": fingerprint(source),
        "num_images": config.get("num_images"),
    }


def judge_weights(
    weights: Path,
    evaluations: Mapping[str, Mapping],
    settings: JudgeSettings,
    folder: Path,
    strategy: PlacingStrategy | None = None,
) -> dict:
    """Load trained weights, run evaluations of their model, and write each one's results to `folder/evaluations/NAME/`.

    The data are read and checked before the weights are loaded. Torch's number of CPU threads is set.

    Args:
        weights: The `weights/` folder of a run.
        evaluations: The configuration of each evaluation by its name, as plain values.
        settings: The settings that hold for all evaluations.
        folder: The run's folder. Folders below it are made if they are missing.
        strategy: The strategy that spreads the model over the ranks (processes that share the work); None means that
            this process judges alone.

    Returns:
        The entry of each evaluation by its name, as metrics.json holds them under `evaluations`. That file is not
        written here. On all ranks but the first the entries are empty.

    Raises:
        ConfigError: If the weights cannot be loaded, an evaluation does not fit the model or its records, or the folder
            holds predictions that something else has made and the settings refuse them.
    """
    torch.set_num_threads(settings.num_threads)
    sources = judged_sources(evaluations, settings.plugins)
    prompts = read_prompts(evaluations, sources)
    weights_key = hash_weights(weights)

    # Logs of other weights are refused before the model, which takes minutes to load.
    for name, config in evaluations.items():
        task = _make_task(name, config, sources[name], prompts[name], settings, folder, weights_key)
        task.check_logs()

    dtype = frozen_dtype(settings.precision)
    as_stored = strategy is not None and strategy.is_sharded
    model, description = load_weights(
        weights,
        dtype,
        plugins=settings.plugins,
        models=settings.models,
        as_stored=as_stored,
    )
    if strategy is not None:
        strategy.prepare(model, dtype)

    maker = sample_maker(model, TextSettings.from_dict(description["text"]))
    return judge(model, maker, evaluations, sources, settings, folder, weights_key, prompts)
