"""Folders of runs that have been judged, as `train` and `evaluate` leave them, with scores that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from visllama.evaluation.caption_files import coco_references, coco_results
from visllama.evaluation.captions import CaptionScores, bleu_metrics
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.per_image import write_answer_scores, write_caption_scores
from visllama.evaluation.prompts import Prompt, Prompts
from visllama.evaluation.statistics import mean_metric
from visllama.evaluation.vqa import VqaScores

DECODING = {"do_sample": False, "num_beams": 1, "max_new_tokens": 40, "eos_token_id": [3], "pad_token_id": 0}
MLP = "visllama.model.connector.MLPConnector"
RESAMPLER = "visllama.model.connector.ResamplerConnector"


def config_of(seed: int = 1, lr: float = 0.004, connector: str = MLP, **more: Any) -> dict:
    """Return what a `config.yaml` holds, as far as tables look into it."""
    return {
        "name": "lr",
        "seed": seed,
        "paths": {"outputs": "outputs"},
        "model": {"connector": {"_target_": connector, "num_image_tokens": 10}},
        "optim": {"_target_": "torch.optim.AdamW", "lr": lr, "lr_by_part": {"markers": None}},
        **more,
    }


def write_run(folder: Path, evaluations: Mapping[str, Mapping], config: Mapping | None = None, **train: float) -> Path:
    """Write a run's `metrics.json`, `config.yaml` and `metrics.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {"git": {"commit": "0123456789abcdef", "dirty": False}}
    content = {"evaluations": evaluations, "train": train, "provenance": provenance}
    (folder / "metrics.json").write_text(json.dumps(content))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
        rows = [f"{step},{2 / step},{3 / step}" for step in range(1, 6)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *rows]) + "\n")
    return folder


def caption_evaluation(metrics: Mapping[str, float], n: int = 4, **more: Any) -> dict:
    """Return an evaluation of captions, as `metrics.json` holds it."""
    return {
        "task": "caption",
        "split": "test",
        "n": n,
        "metrics": dict(metrics),
        "tokenizer": "ptb",
        "document_frequencies": "of the images that are judged",
        "decoding": DECODING,
        "prompt": "",
        **more,
    }


def captioned_run(
    folder: Path,
    cider: Sequence[float],
    captions: Sequence[str] | None = None,
    ids: Sequence[int | str] | None = None,
    config: Mapping | None = None,
    num_shown: int = 100,
    **more: Any,
) -> Path:
    """Write a run that was judged on captions.

    Args:
        folder: The run's folder.
        cider: The CIDEr of each image.
        captions: The captions; None are made up.
        ids: The images' ids; None are made up.
        config: Its configuration.
        num_shown: How many pictures its gallery shows of a kind.
        more: What its evaluation has otherwise.
    """
    count = len(cider)
    ids = [100 + number for number in range(count)] if ids is None else list(ids)
    captions = [f"caption {number}" for number in range(count)] if captions is None else list(captions)
    references = [[f"reference {number}", "another"] for number in range(count)]
    counts = np.tile([6.0, 4, 2, 1, 9, 8, 7, 6, 9, 9], (count, 1))
    order = sorted(range(count), key=lambda number: str(ids[number]))
    own_ids = {str(ids[number]): ids[number] for number in order}
    metrics = {"CIDEr": mean_metric(np.asarray(cider)[order]), **bleu_metrics(counts)}
    scores = CaptionScores(metrics, list(own_ids))
    write_run(folder, {"scenes": caption_evaluation(scores.values, count, **more)}, config)

    place = folder / "evaluations" / "scenes"
    place.mkdir(parents=True)
    write_caption_scores(place / "scores.jsonl", own_ids, scores)
    (place / "captions.json").write_text(json.dumps(coco_results(ids, captions)))
    (place / "references.json").write_text(json.dumps(coco_references(ids, references)))
    prompts = []
    for number in range(count):
        record = {"key": f"r{number}", "captions": references[number], "image_id": ids[number]}
        prompts.append(Prompt(record, number, 1))
    shown = Prompts(prompts, lambda number: [Image.new("RGB", (8, 8), (number % 256, 0, 0))])
    texts = Shown(captions, {"CIDEr": list(cider)}, ids)
    write_gallery(place / "gallery.html", "scenes", shown, texts, count=num_shown)
    return folder


def asked_run(folder: Path, accuracy: Sequence[float], images: Sequence[str], answers: Sequence[str]) -> Path:
    """Write a run that was judged on questions.

    Args:
        folder: The run's folder.
        accuracy: The accuracy of each answer.
        images: The image of each.
        answers: The answers.
    """
    ids = [f"q{number}" for number in range(len(images))]
    scores = VqaScores({"accuracy": np.asarray(accuracy, dtype=float)}, {}, ids, list(images))
    evaluation = {"task": "vqa", "split": "test", "n": len(ids), "metrics": scores.values, "decoding": DECODING}
    write_run(folder, {"vqa": evaluation})
    place = folder / "evaluations" / "vqa"
    place.mkdir(parents=True)
    write_answer_scores(place / "scores.jsonl", {each: each for each in ids}, scores)
    rows = [{"question_id": own_id, "answer": answer} for own_id, answer in zip(ids, answers, strict=True)]
    (place / "answers.json").write_text(json.dumps(rows))
    prompts = []
    for number, image in enumerate(images):
        question = {"question": f"what is <{number}>?", "answers": ["yes"]}
        prompts.append(Prompt({"key": image, "questions": [question]}, number, 1))
    shown = Prompts(prompts, lambda number: [Image.new("RGB", (8, 8))])
    texts = Shown(answers, {"accuracy": list(accuracy)}, ids)
    write_gallery(place / "gallery.html", "vqa", shown, texts)
    return folder
