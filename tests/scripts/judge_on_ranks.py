"""Caption sets of records of many sizes in batches of many sizes; run under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node=3 tests/scripts/judge_on_ranks.py OUT

The first rank writes OUT/<records>-<batch size>.json, as an evaluation writes captions.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.tiny import maker_of, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.caption_files import coco_results
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.generation import generation_bars, write_texts
from visllama.evaluation.prediction_log import PredictionLog
from visllama.evaluation.prompts import prompts_of_source
from visllama.evaluation.report import write_json
from visllama.machine import preemption
from visllama.model.weights import build_model

COUNTS = range(1, 18)
BATCH_SIZES = (1, 4, 16)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    model = build_model(tiny_parts(), ("connector", "markers")).load_base_weights().eval()
    for parameter in model.connector.parameters():
        parameter.data *= 4  # a fresh connector whispers: the captions would be the same for every picture
    for count in COUNTS:
        prompts = prompts_of_source(ScenesSource("val", count), "mine")
        ids = [prompt.record["key"] for prompt in prompts]
        for batch_size in BATCH_SIZES:
            captioner = Captioner(maker_of(model), {"max_new_tokens": 6}, batch_size)
            with tempfile.TemporaryDirectory() as folder, generation_bars() as progress:
                rows = [{"image_id": image_id} for image_id in ids]
                log = PredictionLog(Path(folder) / "predictions.jsonl", rows, "caption", {}, True)
                written = write_texts(model, captioner, prompts, log, progress, "mine")
            if dist.get_rank() == 0:
                write_json(out / f"{count}-{batch_size}.json", coco_results(ids, [each.text for each in written]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    preemption.end_now(0)
