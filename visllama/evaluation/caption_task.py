"""The task `caption`: captions of an evaluation's images, their scores, and those of the same model without sight."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

from visllama.console import is_first_rank, say, working
from visllama.errors import ConfigError
from visllama.evaluation.caption_files import coco_references, coco_results, read_references
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer, CaptionScores
from visllama.evaluation.chair import chair_metrics
from visllama.evaluation.clip_score import ClipScorer
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.generation import generation_bars, write_texts
from visllama.evaluation.per_image import write_caption_scores
from visllama.evaluation.picture_scores import check_instances, clip_scores, find_hallucinations, load_clip
from visllama.evaluation.prediction_log import Written
from visllama.evaluation.prompts import CONTROLS, Prompts
from visllama.evaluation.report import FROM_JUDGED_IMAGES, scores_table, write_json
from visllama.evaluation.statistics import bootstrap_intervals
from visllama.evaluation.task import Task
from visllama.model.visllama import VisLlama

T = TypeVar("T")
_SHOWN = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L", "CLIPScore", "CHAIRi")
"""Metrics that the gallery shows of each caption; it ranks by the first."""


def image_ids(prompts: Prompts, name: str) -> list[int | str]:
    """Return each record's own id, by which its prediction is written; where it brings none, its key.

    Args:
        prompts: What is judged.
        name: The name of the evaluation, for the message.

    Raises:
        ConfigError: If an id comes twice, naming the first five.
    """
    ids = [prompt.record.get("image_id", prompt.record["key"]) for prompt in prompts]
    counts = Counter(map(str, ids))
    doubled = [image_id for image_id, count in counts.items() if count > 1]
    if doubled:
        raise ConfigError(
            f"evaluation.{name}.source: {len(doubled)} image ids come more than once, first {', '.join(doubled[:5])}: "
            f"a prediction would not tell its image: prepare each image once, or judge a part of the tars"
        )
    return ids


def check_images(prompts: Prompts, name: str, config: Mapping) -> None:
    """Refuse images that cannot be told apart, or that a metric knows nothing of, before any model is loaded.

    Raises:
        ConfigError: Naming the first five.
    """
    check_instances(image_ids(prompts, name), name, config)


def judge_captions(model: VisLlama, captioner: Captioner, task: Task) -> dict:
    """Caption a source's images and score it.

    Writes predictions.jsonl, captions.json (COCO's results), references.json (COCO's annotations), scores.jsonl and
    gallery.html.
    """
    name, config = task.name, task.config
    prompts = task.prompts
    ids = image_ids(prompts, name)
    changed = {control: CONTROLS[control](prompts) for control in config["controls"]}
    for shown in (prompts, *changed.values()):
        captioner.check_room(model, shown, f"evaluation.{name}: ")
    clip = load_clip(model, name, config) if is_first_rank() else None

    say(f"{name}: writing captions of {len(prompts)} images{_with_controls(changed)}")
    rows = [{"image_id": image_id} for image_id in ids]
    started = time.perf_counter()
    with generation_bars() as progress:
        written = write_texts(model, captioner, prompts, task.log(rows, "caption"), progress, name)
        seconds = time.perf_counter() - started
        blind: dict[str, list[Written]] = {}
        for control, shown in changed.items():
            log = task.log(rows, "caption", control)
            blind[control] = write_texts(model, captioner, shown, log, progress, control)
    if not is_first_rank():
        return {}  # it has helped to generate; scores are made and written once

    captions = [each.text for each in written]
    scored = _score(task, ids, captions, blind, clip)
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(prompts),
        "metrics": scored.scores.values,
        "intervals": scored.intervals,
        "controls": scored.controls,
        "tokenizer": config["tokenizer"],
        "document_frequencies": config["document_frequencies"] or FROM_JUDGED_IMAGES,
        "cut_off": sum(each.is_cut_off for each in written),
        "decoding": dict(captioner.decoding),
        "prompt": captioner.maker.prompt,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(seconds, 2),
    }
    result |= scored.scores.by_type(_types(ids, prompts))
    if len(prompts) < len(task.source):
        result["n_of"] = len(task.source)
    if task.source.origin:
        result["origin"] = task.source.origin

    write_json(task.folder / "captions.json", coco_results(ids, captions))
    write_json(task.folder / "references.json", coco_references(ids, [prompt.record["captions"] for prompt in prompts]))
    write_caption_scores(task.folder / "scores.jsonl", {str(image_id): image_id for image_id in ids}, scored.scores)
    title = f"{name}, {config['split']}"
    write_gallery(task.folder / "gallery.html", title, prompts, Shown(captions, scored.shown, ids, scored.absent))
    say(scores_table(name, result))
    return result


class _Scored(NamedTuple):
    """What captions are worth.

    Attributes:
        scores: Each metric, over the images in the order of their ids as text.
        intervals: The interval of each metric.
        controls: The scores of each control.
        shown: The metrics that the gallery shows, of each caption in the order of the prompts.
        absent: The objects that each caption names and that are not there, in that order; empty if not measured.
    """

    scores: CaptionScores
    intervals: dict[str, list[float]]
    controls: dict[str, dict[str, float]]
    shown: dict[str, list[float]]
    absent: list[list[str]]


def _score(
    task: Task,
    ids: Sequence[int | str],
    captions: Sequence[str],
    blind: Mapping[str, Sequence[Written]],
    clip: ClipScorer | None,
) -> _Scored:
    """Score captions and those of the controls.

    Args:
        task: The task.
        ids: The id of each prompt's image.
        captions: The caption of each prompt.
        blind: The captions of each control.
        clip: The CLIP of CLIPScore; None measures none.
    """
    config, prompts = task.config, task.prompts
    keys = [str(image_id) for image_id in ids]
    # CIDEr always: the gallery ranks by it, and the controls are compared in it.
    metrics = tuple(dict.fromkeys((*config["metrics"], "CIDEr")))
    say(f"{task.name}: scoring {len(prompts)} captions by {', '.join(metrics)}, then the controls by CIDEr")
    references = {key: prompt.record["captions"] for key, prompt in zip(keys, prompts, strict=True)}
    controls = {}
    with working() as report:
        scorer = CaptionScorer(references, config["tokenizer"], _frequencies_of(config), report)
        scores = scorer.score(dict(zip(keys, captions, strict=True)), metrics)
        for control, written in blind.items():
            texts = [each.text for each in written]
            controls[control] = scorer.score(dict(zip(keys, texts, strict=True)), ("CIDEr",)).values

    numbers = {key: number for number, key in enumerate(keys)}
    order = [numbers[key] for key in scores.ids]
    absent: list[list[str]] = []
    if clip is not None:
        scores.metrics.update(clip_scores(clip, prompts, order, captions))
    if "CHAIR" in metrics:
        found = find_hallucinations(config, ids, prompts, order, captions)
        scores.metrics.update(chair_metrics(found.counts))
        absent = _in_order_of_prompts(found.absent, order)
    with working() as report:
        report("resampling")
        intervals = bootstrap_intervals(scores.metrics)

    shown = {}
    for name in _SHOWN:
        if name in scores.metrics:
            shown[name] = _in_order_of_prompts(scores.metrics[name].per_image, order)
    return _Scored(scores, intervals, controls, shown, absent)


def _in_order_of_prompts(values: Sequence[T], order: Sequence[int]) -> list[T]:
    """Return values of the images, which are in the order of their ids, in the order of the prompts."""
    by_number = dict(zip(order, values, strict=True))
    return [by_number[number] for number in range(len(order))]


def _with_controls(controls: Mapping[str, object]) -> str:
    return f", and again for each control: {', '.join(controls)}" if controls else ""


def _frequencies_of(config: Mapping) -> dict[str, list[str]] | None:
    path = config["document_frequencies"]
    return None if path is None else read_references(Path(path))


def _types(ids: Sequence[int | str], prompts: Prompts) -> dict[str, str]:
    """Return the type of each image that has one, by its id as text."""
    types = {str(image_id): prompt.record.get("type") for image_id, prompt in zip(ids, prompts, strict=True)}
    return {key: value for key, value in types.items() if isinstance(value, str)}
