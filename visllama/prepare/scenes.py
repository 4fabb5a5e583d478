"""`visllama prepare source=scenes`: train the small CLIP and LLaMA of the embedded world, and check their quality.

The embedded world is the data that visllama draws by itself: pictures of simple scenes, and sentences about them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import Future
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Empty, Queue
from typing import cast

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from visllama.config.invocation import run_folder
from visllama.config.overrides import override
from visllama.config.schema import PrepareConfig
from visllama.console import say
from visllama.data.scenes import clip, llama
from visllama.data.scenes.renderer import IMAGE_SIZE_PX
from visllama.data.scenes.world import WORLD_VERSION
from visllama.errors import ConfigError
from visllama.files import write_whole
from visllama.machine import preemption
from visllama.machine.workers import end_with_parent, executor
from visllama.model.pretrained import quietly


def prepare(config: PrepareConfig) -> dict:
    """Train a CLIP and a LLaMA by a recipe, both at once in a process each, save them, and measure how good they are.

    Both are written, with `recipe.json`, to `config.out`, or to `pretrained` in the folder of the run.

    Args:
        config: The configuration of `source=scenes`. Its keys are `prepare` (the recipe: the settings of both
            trainings, and the gates, the least value that each measure has to reach) and `threads` (of each process).

    Returns:
        The content of `recipe.json`: `world_version`, `recipe`, `recipe_sha256` (the recipe's hash), `seed`, and
        `measured` (the value of each measure, by the measure's name).

    Raises:
        ConfigError: If a measure is below its gate; what was written stays there, to be looked at.
    """
    recipe = config.keys["prepare"]
    folder = run_folder()
    out = Path(config.out or folder / "pretrained").resolve()

    started = time.perf_counter()
    # Both processes read the tokenizer that they share from here.
    tokenizer = llama.train_tokenizer(recipe["vocab_size"])
    tokenizer.save_pretrained(out / "llama")

    # The manager is a process of its own, and would outlive this one.
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(end_with_parent)
    with manager, executor(2) as pool:
        reports = manager.Queue()
        shared = (out, recipe, config.seed, config.keys["threads"], reports)
        futures = [pool.submit(work, *shared) for work in (_train_clip, _train_llama)]
        _show(reports, futures)
    trained = time.perf_counter()

    gates = {name: least for name, least in recipe["gates"].items() if least is not None}
    measured = _measure_clip(out)
    if "connector_val_cider" in gates:
        measured["connector_val_cider"] = _short_connector_run(out, recipe["gate_steps"], folder / "gate")
    gates_s = time.perf_counter() - trained

    # The keys are sorted, so that their order in the YAML does not change the hash.
    recipe_json = json.dumps(recipe, sort_keys=True)
    result = {
        "world_version": WORLD_VERSION,
        "recipe_sha256": hashlib.sha256(recipe_json.encode()).hexdigest(),
        "recipe": recipe,
        "seed": config.seed,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_whole(out / "recipe.json", json.dumps(result, indent=2) + "\n")

    # The table is shown also where a gate is missed.
    say(
        _gates_table(measured, gates),
        f"training {trained - started:.0f} s, gates {gates_s:.0f} s",
    )
    missed = [f"{name} {measured[name]:.3f} < {least}" for name, least in gates.items() if measured[name] < least]
    if missed:
        raise ConfigError(f"{out} misses its gates: {', '.join(missed)}")
    say(
        f"\nWrote {out}",
        f"Train on it:  visllama train {shlex.join(_paths(out))}",
    )
    return result


def _measure_clip(pair: Path) -> dict[str, float]:
    """Return the fractions in which CLIP tells facts of a scene, and a scene's sentence from nearly right ones."""
    with quietly():
        model = CLIPModel.from_pretrained(pair / "clip", dtype=torch.float32).eval()
    tokenizer = _read_tokenizer(pair)

    measured = {}
    for fact in ("color", "shape", "size", "cell"):
        measured[f"clip_probe_{fact}"] = clip.probe(model, fact)
    for kind in ("one", "two", "alike"):
        measured[f"clip_near_misses_{kind}"] = clip.near_miss_accuracy(model, tokenizer, kind)
    return measured


def _read_tokenizer(pair: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer that CLIP and LLaMA share."""
    tokenizer = AutoTokenizer.from_pretrained(pair / "llama")
    return cast(PreTrainedTokenizerFast, tokenizer)


def _begin(out: Path, seed: int, threads: int) -> PreTrainedTokenizerFast:
    """Set the threads and the seed of this process, and return the tokenizer that CLIP and LLaMA share."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return _read_tokenizer(out)


def _train_clip(out: Path, recipe: dict, seed: int, threads: int, reports: Queue) -> None:
    """Train CLIP and save it with its image processor."""
    tokenizer = _begin(out, seed, threads)
    model = clip.train_clip(tokenizer, lambda *report: reports.put(report), **recipe["clip"])
    with quietly():
        model.to(torch.bfloat16)  # pyrefly: ignore[bad-argument-type]  transformers wraps Module.to
        model.save_pretrained(out / "clip")

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE_PX},
        crop_size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        image_mean=list(clip.MEAN),
        image_std=list(clip.STD),
    )
    processor.save_pretrained(out / "clip")


def _train_llama(out: Path, recipe: dict, seed: int, threads: int, reports: Queue) -> None:
    """Train LLaMA and save it beside its tokenizer."""
    tokenizer = _begin(out, seed, threads)
    model = llama.train_llama(tokenizer, lambda *report: reports.put(report), **recipe["llama"])
    with quietly():
        model.to(torch.bfloat16)  # pyrefly: ignore[bad-argument-type]  transformers wraps Module.to
        model.save_pretrained(out / "llama")


def _show(reports: Queue, futures: list[Future]) -> None:
    """Show a progress bar for each training process until both have ended, or one has failed; then raise its error."""
    columns = (
        TextColumn("{task.fields[name]:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as progress:
        bars = {}
        while not all(future.done() for future in futures) or not reports.empty():
            # There is no point in waiting for one half of a pair.
            if any(future.done() and future.exception() for future in futures):
                break

            try:
                name, done, total, note = reports.get(timeout=0.5)
            except Empty:
                continue

            if name not in bars:
                bars[name] = progress.add_task(note, name=name)
            progress.update(bars[name], completed=done, total=total, description=note)

    for future in futures:
        future.result()


def _paths(pair: Path) -> list[str]:
    """Return the overrides that let `train` read the CLIP and the LLaMA in a folder."""
    return [
        override("model.vision_encoder.path", pair / "clip"),
        override("model.language_model.path", pair / "llama"),
    ]


def _short_connector_run(pair: Path, num_steps: int, folder: Path) -> float:
    """Train a connector between CLIP and LLaMA for a few steps, and return its CIDEr on validation scenes."""
    command = [
        sys.executable,
        "-m",
        "visllama",
        "train",
        "trainer=cpu",
        *_paths(pair),
        f"trainer.max_steps={num_steps}",
        "trainer.val_check_interval=null",
        "evaluation.scenes_caption.split=val",
        "evaluation.scenes_caption.source.num_records=200",
        "evaluation.scenes_caption.controls=[]",
        override("hydra.run.dir", folder),
    ]
    # The run ends when this process does.
    environment = os.environ | {preemption.PARENT: str(os.getpid())}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"the short connector run failed: {process.stderr[-1000:]}")

    results = json.loads((folder / "metrics.json").read_text())
    return results["evaluations"]["scenes_caption"]["metrics"]["CIDEr"]


def _gates_table(measured: dict[str, float], gates: dict[str, float]) -> Table:
    """Build the table of all measures, each with its gate, if it has one, and whether that is reached."""
    table = Table("measure", title="Quality of the pair")
    for header in ("value", "gate"):
        table.add_column(header, justify="right")
    table.add_column("")

    for name, value in measured.items():
        least = gates.get(name)
        if least is None:
            table.add_row(name, f"{value:.3f}", "", "")
        else:
            verdict = "ok" if value >= least else "[red]missed[/]"
            table.add_row(name, f"{value:.3f}", f"{least}", verdict)
    return table
