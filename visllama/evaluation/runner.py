"""Judge a model: captions of each evaluation's images, their scores, and what the same model scores without seeing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.progress import Progress

from visllama.config import ConfigError
from visllama.console import say
from visllama.data.faults import BadRecord
from visllama.data.images import open_image
from visllama.data.order import permutation
from visllama.data.samples import SampleMaker
from visllama.data.sources import Source, judged_sources
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import score_captions
from visllama.evaluation.gallery import write_gallery
from visllama.evaluation.report import scores_table, write_json
from visllama.evaluation.statistics import intervals
from visllama.hardware import find_device, find_precision, frozen_dtype
from visllama.model.visllama import VisLlama
from visllama.model.weights import load_weights


def shuffled_images(records: Sequence[Mapping]) -> list[dict]:
    """Give each record the image of another one."""
    cycle = permutation(len(records), 0).tolist()
    donor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [dict(record) | {"image": records[donor[i]]["image"]} for i, record in enumerate(records)]


def blank_images(records: Sequence[Mapping]) -> list[dict]:
    """Give each record a gray image of its size."""
    return [
        dict(record) | {"image": Image.new("RGB", open_image(record["image"]).size, (128, 128, 128))}
        for record in records
    ]


_CONTROLS = {"shuffled_images": shuffled_images, "blank_images": blank_images}


def sample_maker(model: VisLlama, prompt: str, max_text_tokens: int) -> SampleMaker:
    """Make what turns records into this model's Samples."""
    return SampleMaker(model.tokenizer, model.vision_encoder.transform, model.num_image_tokens, max_text_tokens, prompt)


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
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        return {
            name: _judge_captions(
                model,
                Captioner(maker, cfg.decoding, config["batch_size"]),
                name,
                config,
                sources[name],
                folder / "evaluations" / name,
            )
            for name, config in evaluations.items()
        }


def _judge_captions(
    model: VisLlama, captioner: Captioner, name: str, config: Mapping, source: Source, folder: Path
) -> dict:
    records = _read_all(source, name)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with Progress(transient=True) as progress:
        captions = _generate(model, captioner, records, folder / "predictions.jsonl", progress, name)
        seconds = time.perf_counter() - started
        controls = {
            control: _generate(model, captioner, _CONTROLS[control](records), None, progress, control)
            for control in config["controls"]
        }
    references = {record["key"]: record["captions"] for record in records}
    keys = [record["key"] for record in records]
    # CIDEr always: the gallery ranks by it, and the controls are compared in it.
    scores = score_captions(dict(zip(keys, captions, strict=True)), references, (*config["metrics"], "CIDEr"))
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(records),
        "metrics": scores.metrics,
        "intervals": intervals(scores),
        "controls": {
            control: score_captions(dict(zip(keys, said, strict=True)), references, ("CIDEr",)).metrics
            for control, said in controls.items()
        },
        "decoding": dict(captioner.decoding),
        "prompt": captioner.maker.prompt,
        "generation_seconds": round(seconds, 2),
    }
    write_json(
        folder / "captions.json", [{"image_id": k, "caption": c} for k, c in sorted(zip(keys, captions, strict=True))]
    )
    by_key = dict(zip(scores.ids, scores.per_image["CIDEr"], strict=True))
    write_gallery(
        folder / "gallery.html", f"{name}, {config['split']}", records, captions, [by_key[key] for key in keys]
    )
    say(scores_table(name, result))
    return result


def _read_all(source: Source, name: str) -> list[dict]:
    """Read what is judged, every record of it: a score over fewer would not compare."""
    try:
        records = [source[i] for i in range(len(source))]
        for record in records:
            open_image(record["image"])
        return records
    except BadRecord as error:
        raise ConfigError(f"evaluation.{name}.source: a record cannot be read: {error}") from error


def _generate(
    model: VisLlama, captioner: Captioner, records: Sequence[Mapping], log: Path | None, progress: Progress, name: str
) -> list[str]:
    task = progress.add_task(name, total=len(records))
    captions: list[str] = []
    with open(log or os.devnull, "w", encoding="utf-8") as file:
        for batch in captioner.batches(model, records):
            for record, caption in zip(records[len(captions) :], batch, strict=False):
                file.write(json.dumps({"image_id": record["key"], "caption": caption}) + "\n")
            file.flush()
            captions += batch
            progress.update(task, completed=len(captions))
    return captions


def judge_weights(weights: Path, evaluations: Mapping, cfg: DictConfig, folder: Path) -> dict:
    """Load weights and judge them, as `judge` does."""
    torch.set_num_threads(cfg.trainer.threads)
    sources = judged_sources(evaluations, cfg.plugins)
    dtype = frozen_dtype(find_precision(cfg.trainer))
    model, description = load_weights(weights, dtype, plugins=cfg.plugins, models=cfg.paths.models)
    return judge(model, sample_maker(model, **description["text"]), evaluations, sources, cfg, folder)
