"""The task `caption`: captions of an evaluation's images, their scores, and those of the same model without sight."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from rich.progress import Progress

from visllama.console import is_first_rank, say
from visllama.data.images import open_image
from visllama.data.order import permutation
from visllama.data.sources import Source, origin
from visllama.evaluation.captioner import Captioner, read_records, write_texts
from visllama.evaluation.captions import score_captions
from visllama.evaluation.gallery import write_gallery
from visllama.evaluation.report import scores_table, write_json
from visllama.evaluation.statistics import intervals
from visllama.model.visllama import VisLlama


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


def judge_captions(
    model: VisLlama, captioner: Captioner, name: str, config: Mapping, source: Source, folder: Path, _: Sequence[str]
) -> dict:
    """Caption a source's images and score it; writes predictions.jsonl, captions.json and gallery.html."""
    records = read_records(source, name)
    keys = [record["key"] for record in records]
    rows = [{"image_id": key} for key in keys]
    started = time.perf_counter()
    with Progress(transient=True, disable=not is_first_rank()) as progress:
        captions = write_texts(model, captioner, records, rows, "caption", folder / "predictions.jsonl", progress, name)
        seconds = time.perf_counter() - started
        controls = {
            control: write_texts(
                model, captioner, _CONTROLS[control](records), rows, "caption", None, progress, control
            )
            for control in config["controls"]
        }
    if not is_first_rank():
        return {}  # it has helped to generate; scores are made and written once
    references = {record["key"]: record["captions"] for record in records}
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
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(seconds, 2),
    }
    if origin(source):
        result["origin"] = origin(source)
    write_json(
        folder / "captions.json", [{"image_id": k, "caption": c} for k, c in sorted(zip(keys, captions, strict=True))]
    )
    by_key = dict(zip(scores.ids, scores.per_image["CIDEr"], strict=True))
    write_gallery(
        folder / "gallery.html", f"{name}, {config['split']}", records, captions, [by_key[key] for key in keys]
    )
    say(scores_table(name, result))
    return result
