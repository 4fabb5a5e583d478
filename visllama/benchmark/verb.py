"""The verb `benchmark`: measure what something costs, beside what others do."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from visllama.benchmark.data import measure
from visllama.benchmark.figures import table
from visllama.console import say
from visllama.evaluation.report import provenance, write_json


def benchmark(cfg: DictConfig) -> dict:
    """Measure `what`, show a table, and write `benchmark.json`; a figure that misses what is asked is no error."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    busy = os.getloadavg()[0]
    figures, facts = measure(cfg.size, cfg.seed)
    result = {
        "what": cfg.what,
        "size": cfg.size,
        "figures": {figure.name: figure.to_dict() for figure in figures},
        "provenance": provenance(seed=cfg.seed, cores=os.cpu_count(), load_before=busy, **facts),
    }
    write_json(folder / "benchmark.json", result)
    say(table(f"What data costs, on one core (size={cfg.size})", figures))
    say(f"\nWrote {folder}: benchmark.json")
    if cfg.size != "full":
        say(f"Steadier figures:  visllama benchmark what={cfg.what} size=full")
    return result
