"""The command `visllama plan`: print a training job's memory, time and cost, computed from its config alone."""

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
"""The config keys that the printed `train` command leaves out: those of `plan` alone, and `check_only`, which would
keep `train` from running."""


def plan(config: PlanConfig) -> Plan:
    """Compute the cost of the job that `train` would run with a config, print it, and return it.

    The `train` command that runs the job is printed as well. It works only inside a job that Hydra has started, as
    `visllama plan` does, since it reads the command line from there.

    Args:
        config: The configuration of `visllama plan`. If its `out` names a file, the plan is also written there as JSON.

    Raises:
        ConfigError: If `train` would refuse the config on every machine, if a base model's shapes are unknown, or if
            the file cannot be written.
    """
    # The job runs on another machine than this one, so what this one lacks is no error.
    anywhere = replace(config.trainer, accelerator="auto", devices="auto", precision="auto")
    check_parts(replace(config, trainer=anywhere))

    model = build_shapes(
        model_parts(config),
        config.stage.trainable,
        config.plugins,
        config.paths["models"],
    )
    max_new_tokens = config.decoding.get("max_new_tokens", 0)
    check_positions(model, config.stage.max_text_tokens, max_new_tokens)

    # The shapes are all that is needed of the model: it has no weights.
    job_plan = make_plan(config, read_shapes(model))
    show(job_plan)
    if config.out:
        content = json.dumps(job_plan.to_dict(), indent=2)
        write_whole(Path(config.out), f"{content}\n")
        say(f"Wrote {config.out}")

    options = invocation().options
    overrides = train_overrides(job_plan.switches or [])
    command = shlex.join(["visllama", "train", *options, *overrides])
    say(f"Run it:  {command}")
    return job_plan


def train_overrides(switches: Sequence[str]) -> list[str]:
    """Return the command-line overrides (`key=value`) of a `train` that fits: the user's own, then `switches`.

    The user's overrides are read from the running Hydra job. Keys that only `plan` has, `check_only`, and keys that
    `switches` sets are left out.

    Args:
        switches: Overrides with which the job fits, as `find_switches` returns them; an empty list if it fits already.
    """
    replaced_keys = set(_OWN_KEYS)
    for switch in switches:
        key, _, _ = switch.partition("=")
        replaced_keys.add(key)

    overrides = []
    for override in invocation().overrides:
        # Hydra takes `+key=value` for a key that the config does not have.
        key, _, _ = override.lstrip("+").partition("=")
        if key not in replaced_keys:
            overrides.append(override)
    return [*overrides, *switches]


def show(job_plan: Plan) -> None:
    """Print a plan to the terminal: tables of memory, arithmetic and time with notes, warnings, and whether it fits."""
    job = job_plan.job
    card = job_plan.rates.card

    notes = [
        f"GiB: in the worst micro-batch, {job.most_at_once} samples padded to the longest text there can be "
        f"({job_plan.longest_tokens} tokens a sample); mean: to the mean one ({job_plan.tokens:,.4g}).",
    ]
    if job_plan.assumed:
        notes.append(f"Assumed: {'; '.join(job_plan.assumed)}.")
    table = memory_table(job, job_plan.longest, job_plan.mean, job_plan.gpu, card)
    say("", table, *map(_wrapped, notes))

    say("", flops_table(job_plan.flops))

    steps = [step for step, _ in job_plan.by_nodes]
    peaks = [peak_bytes for _, peak_bytes in job_plan.by_nodes]
    table = time_table(steps, peaks, card, job_plan.tokens, job_plan.num_samples, job_plan.num_steps)
    notes = time_notes(job_plan.step, job_plan.rates, job_plan.num_steps)
    say("", table, *map(_wrapped, notes), "")

    for warning in job_plan.warnings:
        say(Text(_wrapped(warning), style="yellow"))
    _show_verdict(job_plan)


def _show_verdict(job_plan: Plan) -> None:
    """Print whether the job fits the GPU, and if it does not, the overrides with which it would."""
    peak_gib = job_plan.longest.peak / GIB
    card_gib = job_plan.rates.card.memory_gib
    if job_plan.fits:
        say(Text(f"It fits: {peak_gib:,.1f} of {card_gib:,.1f} GiB.", style="green"))
        return

    remedy = "and no switch makes it fit"
    if job_plan.switches:
        remedy = f"it would with {' '.join(job_plan.switches)}"
    message = f"It does not fit: {peak_gib:,.1f} GiB, and gpu={job_plan.gpu} has {card_gib:,.1f}: {remedy}"
    say(Text(_wrapped(message), style="bold red"))


def _wrapped(text: str) -> str:
    """Return text in lines of at most 80 characters, broken at spaces alone, so that no override is cut in two."""
    return fill(text, 80, break_long_words=False, break_on_hyphens=False)
