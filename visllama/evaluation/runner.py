"""Judge a model: run every evaluation of a config by its task, and write what each leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from visllama.data.samples import SampleMaker
from visllama.data.source import Source
from visllama.data.sources import judged_sources
from visllama.evaluation.caption_task import judge_captions
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.vqa_task import judge_answers
from visllama.machine.devices import find_device, find_precision, frozen_dtype
from visllama.model.visllama import VisLlama
from visllama.model.weights import load_weights
from visllama.text.templates import find_template

if TYPE_CHECKING:
    from visllama.parallel.strategy import Strategy

_TASKS = {"caption": judge_captions, "vqa": judge_answers}


def sample_maker(model: VisLlama, prompt: str, max_text_tokens: int, template: Mapping[str, str]) -> SampleMaker:
    """Return what turns records into this model's Samples, as the `text` of its weights describes."""
    return SampleMaker(
        model.tokenizer,
        model.vision_encoder.transform,
        model.num_image_tokens,
        max_text_tokens,
        prompt,
        find_template(template),
        num_positions=model.num_positions,
    )


def judge(
    model: VisLlama, maker: SampleMaker, evaluations: Mapping, sources: Mapping[str, Source], cfg: DictConfig,
    folder: Path,
) -> dict:  # fmt: skip
    """Run every evaluation and write `evaluations/<name>/` as each ends; gives metrics.json's `evaluations`.

    Args:
        model: With all its weights.
        maker: Makes the prompts; `sample_maker` of this model.
        evaluations: The `evaluation` config group, resolved.
        sources: `judged_sources` of them.
        cfg: Of the verb: its `decoding`, as transformers' `generate` takes it, and `trainer`.
        folder: The run's.
    """
    device, precision = find_device(cfg.trainer.accelerator), find_precision(cfg.trainer)
    model.to(device).eval()
    captioners = {}
    for name, config in evaluations.items():  # all of them first: what does not fit is found before anything is judged
        decoding = OmegaConf.to_container(cfg.decoding, resolve=True) | config.get("decoding", {})
        own = maker.as_judged(config.get("prompt"), config.get("template"))
        captioners[name] = Captioner(own, decoding, config["batch_size"])
    results = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for name, config in evaluations.items():
            target = folder / "evaluations" / name
            target.mkdir(parents=True, exist_ok=True)
            task = _TASKS[config["task"]]
            results[name] = task(model, captioners[name], name, config, sources[name], target, cfg.plugins)
    return results


def judge_weights(
    weights: Path, evaluations: Mapping, cfg: DictConfig, folder: Path, strategy: Strategy | None = None
) -> dict:
    """Load weights and judge them, as `judge` does.

    Args:
        weights: A run's `weights/`.
        evaluations: As `judge` takes them, as `cfg` and `folder`.
        cfg: The verb's.
        folder: The run's.
        strategy: Of the ranks that share the work; it puts the model where it wants it. None is this process alone.
    """
    torch.set_num_threads(cfg.trainer.threads)
    sources = judged_sources(evaluations, cfg.plugins)
    dtype = frozen_dtype(find_precision(cfg.trainer))
    as_stored = strategy is not None and strategy.is_sharded
    model, description = load_weights(weights, dtype, plugins=cfg.plugins, models=cfg.paths.models, as_stored=as_stored)
    if strategy is not None:
        strategy.prepare(model, dtype)
    return judge(model, sample_maker(model, **description["text"]), evaluations, sources, cfg, folder)
