"""Judge a small model again and again, killed each time at a random moment, until it is done.

python tests/scripts/judge_and_kill.py OUT KILLS SEED

Writes OUT/whole (never killed), OUT/killed, and OUT/batches.txt: a line for each batch that was generated in OUT/killed,
"start" and the number of its first prompt, with a line "killed" at each kill. Each judgement is a process of its own,
forked off this one, so that it need not load the model again.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from dataclasses import replace

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of, tiny_parts
from visllama.data.sources import judged_sources
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.report import write_json
from visllama.evaluation.runner import judge
from visllama.model.weights import build_model

SCENES = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 60, "captions_per_record": 5}
EVALUATIONS = {
    "mine": evaluation(task="caption", split="test", batch_size=4, metrics=["BLEU", "CIDEr"], source=SCENES,
                       controls=["shuffled_images"], decoding={"max_new_tokens": 12})
}  # fmt: skip


def judge_in(folder: Path, model: torch.nn.Module, batches: Path | None = None) -> None:
    """Judge in a folder, going on with what is there; notes each batch in a file."""
    if batches is not None:
        write = Captioner._write

        def noted(self, model, prompts, numbers):
            with batches.open("a") as file:
                file.write(f"start {numbers.start}\n")
            return write(self, model, prompts, numbers)

        Captioner._write = noted
    sources = judged_sources(EVALUATIONS, [])
    settings = replace(SETTINGS, refuses_others=True)
    evaluations = judge(model, maker_of(model), EVALUATIONS, sources, settings, folder, "these weights")
    for result in evaluations.values():
        del result["generation_seconds"]
    write_json(folder / "metrics.json", evaluations)


def main(out: Path, num_kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dice = random.Random(seed)
    model = build_model(tiny_parts(), ("connector", "markers")).load_base_weights().eval()
    batches = out / "batches.txt"
    (out / "whole").mkdir()
    started = time.perf_counter()
    judge_in(out / "whole", model)
    whole_s = time.perf_counter() - started

    (out / "killed").mkdir()
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            judge_in(out / "killed", model, batches)
            os._exit(0)
        if killed < num_kills:
            time.sleep(dice.uniform(0, 2 * whole_s / num_kills))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status) != 0 or killed >= num_kills:
                sys.exit(os.WEXITSTATUS(status))
        else:
            killed += 1
            with batches.open("a") as file:
                file.write("killed\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
