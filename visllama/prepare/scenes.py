"""`visllama prepare source=scenes`: train the embedded world's two backbones, and hold them to their gates."""

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

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

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
    """Train the pair by the recipe (both at once, a process each), save it, and measure it.

    Raises:
        ConfigError: If a gate is missed; the pair stays where it was written, to be looked at.
    """
    recipe = config.keys["prepare"]
    folder = run_folder()
    out = Path(config.out or folder / "pretrained").resolve()
    started = time.perf_counter()
    llama.train_tokenizer(recipe["vocab_size"]).save_pretrained(out / "llama")
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(end_with_parent)
    with manager, executor(2) as pool:
        reports = manager.Queue()
        shared = (out, recipe, config.seed, config.keys["threads"], reports)
        train = [pool.submit(work, *shared) for work in (_train_clip, _train_llama)]
        _show(reports, train)
    trained = time.perf_counter()

    with quietly():
        pair = CLIPModel.from_pretrained(out / "clip", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "llama")
    measured = {f"clip_probe_{fact}": clip.probe(pair, fact) for fact in ("color", "shape", "size", "cell")}
    measured |= {
        f"clip_near_misses_{kind}": clip.near_miss_accuracy(pair, tokenizer, kind) for kind in ("one", "two", "alike")
    }
    gates = {name: least for name, least in recipe["gates"].items() if least is not None}
    if "connector_val_cider" in gates:
        measured["connector_val_cider"] = _short_connector_run(out, recipe["gate_steps"], folder / "gate")
    result = {
        "world_version": WORLD_VERSION,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "recipe": recipe,
        "seed": config.seed,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_whole(out / "recipe.json", json.dumps(result, indent=2) + "\n")
    say(
        _gates_table(measured, gates),
        f"training {trained - started:.0f} s, gates {time.perf_counter() - trained:.0f} s",
    )
    missed = [f"{name} {measured[name]:.3f} < {least}" for name, least in gates.items() if measured[name] < least]
    if missed:
        raise ConfigError(f"{out} misses its gates: {', '.join(missed)}")
    say(
        f"\nWrote {out}",
        f"Train on it:  visllama train {shlex.join(_paths(out))}",
    )
    return result


def _begin(out: Path, seed: int, threads: int) -> PreTrainedTokenizerBase:
    """Set up a training process; gives the tokenizer that both share."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return AutoTokenizer.from_pretrained(out / "llama")


def _train_clip(out: Path, recipe: dict, seed: int, threads: int, reports: Queue) -> None:
    tokenizer = _begin(out, seed, threads)
    model = clip.train_clip(tokenizer, lambda *report: reports.put(report), **recipe["clip"])
    with quietly():
        model.to(torch.bfloat16).save_pretrained(out / "clip")
    size = {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE_PX}, crop_size=size, image_mean=list(clip.MEAN), image_std=list(clip.STD)
    ).save_pretrained(out / "clip")


def _train_llama(out: Path, recipe: dict, seed: int, threads: int, reports: Queue) -> None:
    tokenizer = _begin(out, seed, threads)
    model = llama.train_llama(tokenizer, lambda *report: reports.put(report), **recipe["llama"])
    with quietly():
        model.to(torch.bfloat16).save_pretrained(out / "llama")


def _show(reports: Queue, work: list[Future]) -> None:
    """Draw a bar for each process until both have ended; raises what one of them raised."""
    columns = (
        TextColumn("{task.fields[name]:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as progress:
        bars = {}
        while not all(future.done() for future in work) or not reports.empty():
            if any(future.done() and future.exception() for future in work):
                break
            try:
                name, done, total, note = reports.get(timeout=0.5)
            except Empty:
                continue
            if name not in bars:
                bars[name] = progress.add_task(note, name=name)
            progress.update(bars[name], completed=done, total=total, description=note)
    for future in work:
        future.result()


def _paths(pair: Path) -> list[str]:
    """Name the pair as overrides of `train`."""
    return [
        override("model.vision_encoder.path", pair / "clip"),
        override("model.language_model.path", pair / "llama"),
    ]


def _short_connector_run(pair: Path, num_steps: int, folder: Path) -> float:
    """Train a connector on the pair for a few steps; give its CIDEr on validation scenes."""
    command = [
        *(sys.executable, "-m", "visllama", "train", "trainer=cpu"),
        *_paths(pair),
        f"trainer.max_steps={num_steps}",
        "trainer.val_check_interval=null",
        "evaluation.scenes_caption.split=val",
        "evaluation.scenes_caption.source.num_records=200",
        "evaluation.scenes_caption.controls=[]",
        override("hydra.run.dir", folder),
    ]
    environment = os.environ | {preemption.PARENT: str(os.getpid())}  # with which it ends
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"the short connector run failed: {ended.stderr[-1000:]}")
    return json.loads((folder / "metrics.json").read_text())["evaluations"]["scenes_caption"]["metrics"]["CIDEr"]


def _gates_table(measured: dict[str, float], gates: dict[str, float]) -> Table:
    table = Table("measure", title="Quality of the pair")
    for header in ("value", "gate"):
        table.add_column(header, justify="right")
    table.add_column("")
    for name, value in measured.items():
        least = gates.get(name)
        verdict = "" if least is None else "ok" if value >= least else "[red]missed[/]"
        table.add_row(name, f"{value:.3f}", "" if least is None else f"{least}", verdict)
    return table
