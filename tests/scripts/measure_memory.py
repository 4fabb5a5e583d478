"""Resident anonymous memory of a rank that loads a frozen language model in shards; run under torchrun.

MALLOC_MMAP_THRESHOLD_=65536 python -m torch.distributed.run --standalone --nproc-per-node=2 tests/scripts/measure_memory.py FOLDER

FOLDER holds a causal language model with its tokenizer. Each rank prints a line of JSON, in MiB: what it held before,
what it holds after, and the most of all, a forward and backward pass included. (The variable lets glibc give back what
is freed; otherwise the buffers of every block that was whole once seem to be there still.)
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.tiny import tiny_parts
from visllama.machine import preemption
from visllama.model.sharding import shard
from visllama.model.weights import build_model
from visllama.text.tokens import image_span


def anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("no RssAnon")


class Most(threading.Thread):
    """Watches for the most that was held."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib, self.watching = 0.0, True

    def run(self) -> None:
        while self.watching:
            self.mib = max(self.mib, anonymous_mib())
            time.sleep(0.002)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    dist.init_process_group("gloo")
    parts = tiny_parts()
    parts["language_model"] = {"kind": "PretrainedLanguageModel", "arguments": {"path": folder}}
    model = build_model(parts, ("connector", "markers"))
    gc.collect()
    before, most = anonymous_mib(), Most()
    most.start()
    model.load_base_weights(torch.bfloat16, as_stored=True)
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), torch.bfloat16)
    gc.collect()
    after = anonymous_mib()
    ids, size = torch.tensor([[1, *image_span(10), 5, 6, 7]]), model.vision_encoder.transform.size_px
    model(ids, torch.zeros(1, 3, size, size, dtype=torch.uint8), labels=ids.clamp(min=0)).loss_sum.backward()
    most.watching = False
    found = {"rank": dist.get_rank(), "before": before, "after": after, "most": most.mib}
    print(json.dumps({name: round(value, 1) for name, value in found.items()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    preemption.end_now(0)
