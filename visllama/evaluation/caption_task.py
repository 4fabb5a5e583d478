"""The task `caption`: let a model caption the images of an evaluation, and score the captions and those of controls.

A control shows the model wrong pictures, and scores the captions against the references of the right ones. How far the
score falls shows how much the captions depend on sight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from visllama.config.choices import METRICS
from visllama.console import is_first_rank, say, working
from visllama.errors import ConfigError
from visllama.evaluation.caption_files import coco_references, coco_results, read_references
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer, CaptionScores
from visllama.evaluation.chair import chair_metrics
from visllama.evaluation.clip_score import ClipScorer
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.generation import Generated, write_all_texts
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
"""The metrics of each caption that the gallery shows; it ranks by the first."""


def image_ids(prompts: Prompts, name: str) -> list[int | str]:
    """Return the image id of each prompt, in the order of the prompts. Captions are written under these ids.

    The id is the `image_id` of the prompt's record, unchanged, or the record's `key` if the record has no `image_id`.

    Args:
        prompts: The prompts of the evaluation.
        name: The name of the evaluation, for the message.

    Raises:
        ConfigError: If an id comes more than once, naming the first five. A number and the same number as text are the
            same id.
    """
    ids = [prompt.record.get("image_id", prompt.record["key"]) for prompt in prompts]

    # As text, because 7 and "7" are the same id in a file of predictions.
    counts = Counter(str(image_id) for image_id in ids)
    duplicates = [image_id for image_id, count in counts.items() if count > 1]
    if duplicates:
        first = ", ".join(duplicates[:5])
        raise ConfigError(
            f"evaluation.{name}.source: {len(duplicates)} image ids come more than once, first {first}: "
            f"a prediction would not tell its image: prepare each image once, or judge a part of the tars"
        )
    return ids


def check_images(prompts: Prompts, name: str, config: Mapping) -> None:
    """Check that the images of an evaluation can be scored; no model is needed.

    The ids of the images have to differ. If CHAIR is among the metrics, the file `instances` is read and has to cover
    every image.

    Args:
        prompts: The prompts of the evaluation.
        name: The name of the evaluation, for the message.
        config: The configuration of the evaluation, with `metrics`, `instances` and `object_names`.

    Raises:
        ConfigError: If an id comes more than once, an image is not in `instances`, or that file cannot be read. The
            message names the first five ids.
    """
    check_instances(image_ids(prompts, name), name, config)


def judge_captions(model: VisLlama, captioner: Captioner, task: Task) -> dict:
    """Let a model caption the images of an evaluation, score the captions, and write and print the results.

    Writes predictions.jsonl, captions.json (COCO's results), references.json (COCO's annotations), scores.jsonl,
    gallery.html and, for each control (the same prompts with wrong pictures), controls/NAME.jsonl to `task.folder`.
    Captions that predictions.jsonl already holds are not generated again.

    Args:
        model: A model with all its weights, on the device that computes.
        captioner: The captioner that generates, with the decoding of the evaluation.
        task: The evaluation; its folder has to exist.

    Returns:
        The entry of the evaluation in metrics.json; an empty mapping on all ranks but the first.

    Raises:
        ConfigError: If an image id comes more than once, a prompt does not fit the language model's positions, a
            picture cannot be decoded, or the CLIP of CLIPScore cannot be loaded.
    """
    name = task.name
    config = task.config
    prompts = task.prompts
    ids = image_ids(prompts, name)

    # Whatever can be refused is refused here, before hours of generation.
    controls = {control: CONTROLS[control](prompts) for control in config["controls"]}
    for checked_prompts in (prompts, *controls.values()):
        captioner.check_room(model, checked_prompts, f"evaluation.{name}: ")
    # The other ranks score nothing.
    clip = load_clip(model, name, config) if is_first_rank() else None

    say(f"{name}: writing captions of {len(prompts)} images{_with_controls(controls)}")
    log_ids = [{"image_id": image_id} for image_id in ids]
    generated = write_all_texts(model, captioner, task, log_ids, "caption", controls)

    # The other ranks have helped to generate; scores are computed and written once.
    if not is_first_rank():
        return {}

    captions = [each.text for each in generated.written]
    scored = _score(task, ids, captions, generated.controls, clip)
    result = _result(task, captioner, ids, generated, scored)

    references = [prompt.record["captions"] for prompt in prompts]
    id_of_key = {str(image_id): image_id for image_id in ids}
    caption_rows = coco_results(ids, captions)
    write_json(task.folder / "captions.json", caption_rows)
    reference_file = coco_references(ids, references)
    write_json(task.folder / "references.json", reference_file)
    write_caption_scores(task.folder / "scores.jsonl", id_of_key, scored.scores)

    title = f"{name}, {config['split']}"
    shown = Shown(captions, scored.shown, ids, scored.absent)
    write_gallery(task.folder / "gallery.html", title, prompts, shown)
    say(scores_table(name, result))
    return result


class _Scored(NamedTuple):
    """The scores of captions and of the controls.

    Attributes:
        scores: Each metric, over the images in the order of their ids as text.
        intervals: The 95% interval `[low, high]` of each metric, by the metric's name.
        controls: The scores of each control, by the control's name and the metric's.
        shown: The scores of each caption that the gallery shows, by the metric's name and in the order of the prompts.
        absent: The objects that each caption names and that are not in its picture, in the order of the prompts; empty
            if CHAIR was not measured.
    """

    scores: CaptionScores
    intervals: dict[str, list[float]]
    controls: dict[str, dict[str, float]]
    shown: dict[str, list[float]]
    absent: list[list[str]]


def _result(
    task: Task,
    captioner: Captioner,
    ids: Sequence[int | str],
    generated: Generated,
    scored: _Scored,
) -> dict[str, Any]:
    """Return the entry of the evaluation in metrics.json.

    Args:
        task: The evaluation.
        captioner: The captioner that has generated.
        ids: The id of each prompt's image.
        generated: The captions of the prompts and of the controls.
        scored: The scores of the captions and of the controls.
    """
    config = task.config
    num_prompts = len(task.prompts)
    num_cut_off = sum(each.is_cut_off for each in generated.written)
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": num_prompts,
        "metrics": scored.scores.values,
        "intervals": scored.intervals,
        "controls": scored.controls,
        "tokenizer": config["tokenizer"],
        "document_frequencies": config["document_frequencies"] or FROM_JUDGED_IMAGES,
        "cut_off": num_cut_off,
        "decoding": dict(captioner.decoding),
        "prompt": captioner.maker.prompt,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(generated.seconds, 2),
    }
    types = _types(ids, task.prompts)
    result |= scored.scores.by_type(types)
    if num_prompts < len(task.source):
        result["n_of"] = len(task.source)
    if task.source.origin:
        result["origin"] = task.source.origin
    return result


def _score(
    task: Task,
    ids: Sequence[int | str],
    captions: Sequence[str],
    control_texts: Mapping[str, Sequence[Written]],
    clip: ClipScorer | None,
) -> _Scored:
    """Score the captions, and those of the controls.

    Args:
        task: The evaluation.
        ids: The id of each prompt's image.
        captions: The caption of each prompt.
        control_texts: The captions of each control.
        clip: The CLIP of CLIPScore; None leaves CLIPScore out.
    """
    config = task.config
    prompts = task.prompts
    keys = [str(image_id) for image_id in ids]

    # CIDEr is always measured: the gallery ranks by it, and the controls are compared by it.
    metrics = tuple(dict.fromkeys((*config["metrics"], "CIDEr")))
    then_controls = ", then the controls by CIDEr" if control_texts else ""
    say(f"{task.name}: scoring {len(prompts)} captions by {', '.join(metrics)}{then_controls}")
    captions_of_records = [prompt.record["captions"] for prompt in prompts]
    references = dict(zip(keys, captions_of_records, strict=True))
    control_scores = {}
    with working() as report:
        scorer = CaptionScorer(references, config["tokenizer"], _frequencies_of(config), report)
        # The other metrics need the pictures, and are computed below.
        text_metrics = [metric for metric in metrics if metric in METRICS]
        predictions = dict(zip(keys, captions, strict=True))
        scores = scorer.score(predictions, text_metrics)

        for control, written in control_texts.items():
            texts = [each.text for each in written]
            control_predictions = dict(zip(keys, texts, strict=True))
            control_scores[control] = scorer.score(control_predictions, ("CIDEr",)).values

    # Scores are in the order of the ids as text; what follows looks up the prompts in that order, and back.
    numbers = {key: number for number, key in enumerate(keys)}
    order = [numbers[key] for key in scores.ids]
    if clip is not None:
        scores.metrics.update(clip_scores(clip, prompts, order, captions))

    absent: list[list[str]] = []
    if "CHAIR" in metrics:
        hallucinations = find_hallucinations(config, ids, prompts, order, captions)
        scores.metrics.update(chair_metrics(hallucinations.counts))
        absent = _in_order_of_prompts(hallucinations.absent, order)

    with working() as report:
        report("resampling")
        intervals = bootstrap_intervals(scores.metrics)

    shown = {}
    for name in _SHOWN:
        if name in scores.metrics:
            shown[name] = _in_order_of_prompts(scores.metrics[name].per_image, order)
    return _Scored(scores, intervals, control_scores, shown, absent)


def _in_order_of_prompts(values: Iterable[T], order: Sequence[int]) -> list[T]:
    """Sort values into the order of the prompts.

    Args:
        values: One value for each prompt, in any order.
        order: The number of the prompt that each value belongs to.
    """
    by_number = dict(zip(order, values, strict=True))
    return [by_number[number] for number in range(len(order))]


def _with_controls(controls: Mapping[str, object]) -> str:
    """Return the end of the message that says which controls are captioned too."""
    return f", and again for each control: {', '.join(controls)}" if controls else ""


def _frequencies_of(config: Mapping) -> dict[str, list[str]] | None:
    """Read the configured references in which CIDEr counts how rare a word is; None means those that are judged."""
    path = config["document_frequencies"]
    return None if path is None else read_references(Path(path))


def _types(ids: Sequence[int | str], prompts: Prompts) -> dict[str, str]:
    """Return the type of each image that has one, by the image's id as text."""
    types = {}
    for image_id, prompt in zip(ids, prompts, strict=True):
        value = prompt.record.get("type")
        if isinstance(value, str):
            types[str(image_id)] = value
    return types
