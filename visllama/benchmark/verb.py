"""The verb `benchmark`: measure what something costs, beside what others do."""

from __future__ import annotations

import os

from visllama.benchmark.data import measure
from visllama.benchmark.figures import table
from visllama.config.invocation import run_folder
from visllama.config.schema import BenchmarkConfig
from visllama.console import say
from visllama.evaluation.report import provenance, write_json


def benchmark(config: BenchmarkConfig) -> dict:
    """Measure `what`, show a table, and write `benchmark.json`; a figure that misses what is asked is no error."""
    folder = run_folder()
    busy = os.getloadavg()[0]
    figures, facts = measure(config.size, config.seed)
    result = {
        "what": config.what,
        "size": config.size,
        "figures": {figure.name: figure.to_dict() for figure in figures},
        "provenance": provenance(seed=config.seed, cores=os.cpu_count(), load_before=busy, **facts),
    }
    write_json(folder / "benchmark.json", result)
    say(table(f"What data costs, on one core (size={config.size})", figures))
    say(f"\nWrote {folder}: benchmark.json")
    if config.size != "full":
        say(f"Steadier figures:  visllama benchmark what={config.what} size=full")
    return result
