"""Judge a model: run every evaluation of a config by its task, and write what each leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from visllama.parallel.strategy import Strategy

_TASKS = {"caption": judge_captions, "vqa": judge_answers}
_CHECKS = {"caption": check_images, "vqa": check_questions}


@dataclass(frozen=True)
class JudgeSettings:
    """The settings of judging that hold for all evaluations.

    Attributes:
        accelerator: Lightning's name of the device, or "auto".
        precision: Name of the precision, or "auto".
        num_threads: Threads of the CPU.
        decoding: Arguments of transformers' `generate`; an evaluation's own win over them.
        plugins: The user's packages, from which parts and sources may come.
        models: Folder of downloaded base models.
        seed: Decides what is drawn where a decoding samples.
        refuses_others: Whether predictions in the folder that other weights, prompts or decodings have made are
            refused; otherwise they are begun anew.
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
        """Read the settings from the configuration of a verb that judges."""
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
    """Return what turns records into this model's Samples."""
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
    """Read the texts of every evaluation; it needs no model.

    Raises:
        ConfigError: If an id comes twice, or an evaluation's metrics are of other records, naming the first five.
    """
    prompts = {}
    for name, config in evaluations.items():
        prompts[name] = prompts_of_source(sources[name], name, config.get("num_images"))
        _CHECKS[config["task"]](prompts[name], name, config)
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
    """Run every evaluation, and write `evaluations/<name>/` as each ends.

    Args:
        model: A model with all its weights.
        maker: The maker of its prompts, as `sample_maker` gives it.
        evaluations: The `evaluation` group of the configuration, resolved.
        sources: The source of each evaluation, as `judged_sources` gives them.
        settings: How they are judged.
        folder: The run's folder.
        weights_key: The hash of the model's weights, as `hash_weights` gives it: predictions of others are not mixed
            in.
        prompts: What `read_prompts` has read; None reads it.

    Returns:
        The `evaluations` of metrics.json.
    """
    prompts = read_prompts(evaluations, sources) if prompts is None else prompts
    device = find_device(settings.accelerator)
    model.to(device).eval()

    captioners = {}
    for name, config in evaluations.items():  # all of them first: what does not fit is found before anything is judged
        own = maker.as_judged(config.get("prompt"), config.get("template"))
        captioners[name] = Captioner(own, decoding_of(config, settings), config["batch_size"], settings.seed)

    results = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
        for name, config in evaluations.items():
            task = _make_task(name, config, sources[name], prompts[name], settings, folder, weights_key)
            task.folder.mkdir(parents=True, exist_ok=True)
            results[name] = _TASKS[config["task"]](model, captioners[name], task)
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
    made_by = {"weights": weights_key, **texts_made_by(config, source, settings)}
    target = folder / "evaluations" / name
    return Task(name, config, source, prompts, target, settings.plugins, made_by, settings.refuses_others)


def decoding_of(config: Mapping, settings: JudgeSettings) -> dict[str, Any]:
    """Return the decoding of an evaluation: its own settings win over those of all."""
    return {**settings.decoding, **config.get("decoding", {})}


def texts_made_by(config: Mapping, source: Source, settings: JudgeSettings) -> dict[str, object]:
    """Return what decides the texts of an evaluation beside the weights, known before any is loaded."""
    decoding = decoding_of(config, settings)
    return {
        "prompt": config.get("prompt"),
        "template": config.get("template"),
        "decoding": decoding,
        "seed": settings.seed if decoding.get("do_sample") else None,
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
    strategy: Strategy | None = None,
) -> dict:
    """Load weights, and judge them as `judge` does.

    Args:
        weights: The `weights/` of a run.
        evaluations: The `evaluation` group of the configuration, resolved.
        settings: How they are judged.
        folder: The run's folder.
        strategy: The strategy of the ranks that share the work, which puts the model where it wants it; None is this
            process alone.
    """
    torch.set_num_threads(settings.num_threads)
    sources = judged_sources(evaluations, settings.plugins)
    prompts = read_prompts(evaluations, sources)
    weights_key = hash_weights(weights)
    for name, config in evaluations.items():
        _make_task(name, config, sources[name], prompts[name], settings, folder, weights_key).check_logs()
    dtype = frozen_dtype(settings.precision)
    as_stored = strategy is not None and strategy.is_sharded
    model, description = load_weights(
        weights, dtype, plugins=settings.plugins, models=settings.models, as_stored=as_stored
    )
    if strategy is not None:
        strategy.prepare(model, dtype)
    maker = sample_maker(model, TextSettings.from_dict(description["text"]))
    return judge(model, maker, evaluations, sources, settings, folder, weights_key, prompts)
