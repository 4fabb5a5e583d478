"""`visllama prepare source=scenes`: train the embedded world's two backbones, and hold them to their gates."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from visllama.config import ConfigError
from visllama.console import say
from visllama.data.scenes import backbones
from visllama.data.scenes.world import WORLD_VERSION


def prepare(cfg: DictConfig) -> dict:
    """Train the pair by the recipe, save it, and measure it.

    Raises:
        ConfigError: If a gate is missed; the pair stays where it was written, to be looked at.
    """
    if cfg.source != "scenes":
        raise ConfigError(f"source={cfg.source}: there is scenes")
    recipe = OmegaConf.to_container(cfg.prepare, resolve=True)
    out = Path(cfg.out or Path(HydraConfig.get().runtime.output_dir) / "pretrained").resolve()
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    seconds: dict[str, float] = {}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        started = time.perf_counter()
        tokenizer = backbones.train_tokenizer(recipe["vocab_size"])
        seconds["tokenizer"] = time.perf_counter() - started
        clip = backbones.train_clip(tokenizer, progress, **recipe["clip"])
        seconds["clip"] = time.perf_counter() - started - sum(seconds.values())
        llama = backbones.train_llama(tokenizer, progress, **recipe["llama"])
        seconds["llama"] = time.perf_counter() - started - sum(seconds.values())
    measured = {f"clip_probe_{fact}": backbones.probe(clip, fact) for fact in ("color", "shape", "size", "cell")}
    measured |= {
        f"clip_near_misses_{kind}": backbones.near_miss_accuracy(clip, tokenizer, kind)
        for kind in ("one", "two", "alike")
    }
    backbones.save_pair(clip, llama, tokenizer, out)
    if "connector_val_cider" in recipe["gates"]:
        measured["connector_val_cider"] = _short_connector_run(out, recipe["gate_steps"])
    seconds["gates"] = time.perf_counter() - started - sum(seconds.values())
    result = {
        "world_version": WORLD_VERSION,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "recipe": recipe,
        "seed": cfg.seed,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    (out / "recipe.json").write_text(json.dumps(result, indent=2) + "\n")
    say(_gates_table(measured, recipe["gates"]), ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    missed = [
        f"{name} {measured[name]:.3f} < {least}" for name, least in recipe["gates"].items() if measured[name] < least
    ]
    if missed:
        raise ConfigError(f"{out} misses its gates: {', '.join(missed)}")
    say(
        f"\nWrote {out}",
        f"Train on it:  python train.py model.vision_encoder.path={out}/clip model.language_model.path={out}/llama",
    )
    return result


def _short_connector_run(pair: Path, num_steps: int) -> float:
    """Train a connector on the pair for a few steps; give its CIDEr on validation scenes."""
    folder = pair.parent / "gate"
    command = [
        sys.executable,
        "-m",
        "visllama",
        "train",
        f"model.vision_encoder.path='{pair}/clip'",
        f"model.language_model.path='{pair}/llama'",
    ]
    command += [f"trainer.max_steps={num_steps}", "trainer.val_fraction=null", "evaluation.scenes_caption.split=val", "trainer.accelerator=cpu",
                "trainer.devices=1", "evaluation.scenes_caption.source.num_records=200", "evaluation.scenes_caption.controls=[]", f"hydra.run.dir='{folder}'"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True)
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
