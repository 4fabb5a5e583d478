"""The verb `benchmark`: measure what something costs, beside what the same costs elsewhere."""

from __future__ import annotations

import os

from visllama.benchmark.data import measure
from visllama.benchmark.figures import table
from visllama.config.invocation import run_folder
from visllama.config.schema import BenchmarkConfig
from visllama.console import say
from visllama.evaluation.report import provenance, write_json


def benchmark(config: BenchmarkConfig) -> dict:
    """Run the benchmark, print a table of its figures, and write `benchmark.json` to the folder of the run.

    A figure that misses its bound is shown as missed, and raises no error.

    Args:
        config: `size` ("small" or "full") and `seed` say what is measured; `what` is only kept in the result.

    Returns:
        The content of `benchmark.json`: `what`, `size`, `figures` (each figure's value, unit and bound, by its name),
        and `provenance` (the versions, the machine and its load, under which they were measured).
    """
    folder = run_folder()
    # On a busy machine the figures are worse: those who compare them should know.
    load_before, _, _ = os.getloadavg()
    figures, facts = measure(config.size, config.seed)

    result = {
        "what": config.what,
        "size": config.size,
        "figures": {figure.name: figure.to_dict() for figure in figures},
        "provenance": provenance(seed=config.seed, cores=os.cpu_count(), load_before=load_before, **facts),
    }
    write_json(folder / "benchmark.json", result)

    say(table(f"What data costs, on one core (size={config.size})", figures))
    say(f"\nWrote {folder}: benchmark.json")
    if config.size != "full":
        say(f"Steadier figures:  visllama benchmark what={config.what} size=full")
    return result
