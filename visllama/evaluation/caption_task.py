"""The task `caption`: captions of an evaluation's images, their scores, and those of the same model without sight."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from PIL import Image

from visllama.console import bars, is_first_rank, say, working
from visllama.data.order import permutation
from visllama.data.source import Source
from visllama.evaluation.captioner import Captioner, image_ids, read_records, write_texts
from visllama.evaluation.captions import CaptionScorer, coco_references, coco_results
from visllama.evaluation.gallery import write_gallery
from visllama.evaluation.report import scores_table, write_json
from visllama.evaluation.statistics import intervals
from visllama.images.decode import open_image
from visllama.model.visllama import VisLlama


def shuffled_images(records: Sequence[Mapping]) -> list[dict]:
    """Return each record the image of another one."""
    cycle = permutation(len(records), 0).tolist()
    donor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [dict(record) | {"image": records[donor[i]]["image"]} for i, record in enumerate(records)]


def blank_images(records: Sequence[Mapping]) -> list[dict]:
    """Replace each record's image by a gray one of its size; pictures of one size share a file of a few hundred bytes.

    Decoded, the gray pictures of 5,000 photos would take 4.6 GB.
    """
    return [dict(record) | {"image": _gray_file(*open_image(record["image"]).size)} for record in records]


@cache
def _gray_file(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG", compress_level=1)
    return file.getvalue()


_CONTROLS = {"shuffled_images": shuffled_images, "blank_images": blank_images}


def _with_controls(controls: Mapping[str, object]) -> str:
    return f", and again for each control: {', '.join(controls)}" if controls else ""


def judge_captions(
    model: VisLlama, captioner: Captioner, name: str, config: Mapping, source: Source, folder: Path, _: Sequence[str]
) -> dict:
    """Caption a source's images and score it.

    Writes predictions.jsonl, captions.json (COCO's results), references.json (COCO's annotations) and gallery.html.
    """
    records = read_records(source, name)
    ids = image_ids(records, name)
    changed = {control: _CONTROLS[control](records) for control in config["controls"]}
    for shown in (records, *changed.values()):
        captioner.check_room(model, shown, f"evaluation.{name}: ")

    rows = [{"image_id": image_id} for image_id in ids]
    say(f"{name}: writing captions of {len(records)} images{_with_controls(changed)}")
    started = time.perf_counter()
    with bars() as progress:
        captions = write_texts(model, captioner, records, rows, "caption", folder / "predictions.jsonl", progress, name)
        seconds = time.perf_counter() - started
        controls = {
            control: write_texts(model, captioner, shown, rows, "caption", None, progress, control)
            for control, shown in changed.items()
        }
    if not is_first_rank():
        return {}  # it has helped to generate; scores are made and written once

    # CIDEr always: the gallery ranks by it, and the controls are compared in it.
    metrics = tuple(dict.fromkeys((*config["metrics"], "CIDEr")))
    say(f"{name}: scoring {len(records)} captions by {', '.join(metrics)}, then the controls by CIDEr")
    keys = [str(image_id) for image_id in ids]
    references = {key: record["captions"] for key, record in zip(keys, records, strict=True)}
    with working() as report:
        scorer = CaptionScorer(references, report)
        scores = scorer.score(dict(zip(keys, captions, strict=True)), metrics)
        beside = {c: scorer.score(dict(zip(keys, said, strict=True)), ("CIDEr",)) for c, said in controls.items()}
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(records),
        "metrics": scores.metrics,
        "intervals": intervals(scores),
        "controls": {control: blind.metrics for control, blind in beside.items()},
        "decoding": dict(captioner.decoding),
        "prompt": captioner.maker.prompt,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(seconds, 2),
    }
    if source.origin:
        result["origin"] = source.origin
    write_json(folder / "captions.json", coco_results(ids, captions))
    write_json(folder / "references.json", coco_references(ids, [record["captions"] for record in records]))
    by_key = dict(zip(scores.ids, scores.per_image["CIDEr"], strict=True))
    write_gallery(
        folder / "gallery.html", f"{name}, {config['split']}", records, captions, [by_key[key] for key in keys]
    )
    say(scores_table(name, result))
    return result
