"""The verb `plan`: a job's memory, time and cost, from its config alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from rich.text import Text

from visllama.config.dry_run import check_parts
from visllama.config.invocation import invocation
from visllama.config.schema import PlanConfig
from visllama.console import say
from visllama.files import write_whole
from visllama.model.shapes import read_shapes
from visllama.plan.lines import GIB
from visllama.plan.model import build_shapes
from visllama.plan.planned import Plan, make_plan
from visllama.plan.tables import flops_table, memory_table, time_notes, time_table
from visllama.training.assembly import check_positions, model_parts

_OWN_KEYS = ("gpu", "utilisation", "network_gb_s", "text_tokens", "samples", "out", "check_only")


def plan(config: PlanConfig) -> Plan:
    """Show what the job costs that `train` would run with this config; with `out`, write it as JSON too.

    Raises:
        ConfigError: If `train` would refuse the config, wherever it runs, or a base model's shapes are unknown.
    """
    # The job's machine is another one than this.
    anywhere = replace(config.trainer, accelerator="auto", devices="auto", precision="auto")
    check_parts(replace(config, trainer=anywhere))
    model = build_shapes(model_parts(config), config.stage.trainable, config.plugins, config.paths["models"])
    check_positions(model, config.stage.max_text_tokens, config.decoding.get("max_new_tokens", 0))
    made = make_plan(config, read_shapes(model))
    show(made)
    if config.out:
        write_whole(Path(config.out), json.dumps(made.to_dict(), indent=2) + "\n")
        say(f"Wrote {config.out}")
    say(f"Run it:  {shlex.join(['visllama', 'train', *invocation().options, *train_overrides(made.switches or [])])}")
    return made


def train_overrides(switches: Sequence[str]) -> list[str]:
    """Return what was typed and `train` takes, with switches in place of what they change."""
    replaced = {*_OWN_KEYS, *(word.partition("=")[0] for word in switches)}
    typed = invocation().overrides
    return [*(word for word in typed if word.lstrip("+").partition("=")[0] not in replaced), *switches]


def show(found: Plan) -> None:
    """Print it."""
    job, card = found.job, found.rates.card
    notes = [
        f"GiB: in the worst micro-batch, {job.most_at_once} samples padded to the longest text there can be "
        f"({found.longest_tokens} tokens a sample); mean: to the mean one ({found.tokens:,.4g}).",
    ]
    if found.assumed:
        notes.append(f"Assumed: {'; '.join(found.assumed)}.")
    say("", memory_table(job, found.longest, found.mean, found.gpu, card), *map(_wrapped, notes))
    say("", flops_table(found.flops))
    steps, peaks = zip(*found.by_nodes, strict=True)
    table = time_table(steps, peaks, card, found.tokens, found.num_samples, found.num_steps)
    say("", table, *map(_wrapped, time_notes(found.step, found.rates, found.num_steps)), "")
    for warning in found.warnings:
        say(Text(_wrapped(warning), style="yellow"))
    gib = found.longest.peak / GIB, card.memory_gib
    if found.fits:
        say(Text(f"It fits: {gib[0]:,.1f} of {gib[1]:,.1f} GiB.", style="green"))
        return
    how = f"it would with {' '.join(found.switches)}" if found.switches else "and no switch makes it fit"
    told = f"It does not fit: {gib[0]:,.1f} GiB, and gpu={found.gpu} has {gib[1]:,.1f}: {how}"
    say(Text(_wrapped(told), style="bold red"))


def _wrapped(text: str) -> str:
    return fill(text, 80, break_long_words=False, break_on_hyphens=False)
