"""One inspection: the first steps of a run, as tables on the terminal and as a page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from visllama.config.invocation import invocation, run_folder
from visllama.config.schema import InspectConfig
from visllama.console import say
from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.evaluation.runner import sample_maker
from visllama.inspect.page import write_page
from visllama.inspect.reading import Shown, choose, readable
from visllama.inspect.seen import MeasuredSample, SeenStep, see
from visllama.inspect.tables import (
    SourceCounts,
    bars,
    columns_note,
    count_sources,
    histogram,
    sources_table,
    step_line,
    tokens_table,
)
from visllama.training.assembly import Assembly
from visllama.training.run import training_data

_OWN_KEYS = ("samples", "num_samples", "check_only")
_MOST_TOLD = 5


class Inspected(NamedTuple):
    """What was seen, counted by source, and shown."""

    steps: list[SeenStep]
    counts: list[SourceCounts]
    shown: list[Shown]


def inspect_batches(config: InspectConfig, assembly: Assembly) -> Inspected:
    """Load, show, write the page; with `check_only` it is not written."""
    maker, most = sample_maker(assembly.model, assembly.text), config.stage.max_text_tokens
    steps = see(training_data(config, assembly, maker), config.num_samples, config.samples)
    samples = [sample for step in steps for sample in step.samples]
    shown = choose(steps, config.samples, maker.tokenizer)
    counts = count_sources(samples, assembly.order.names)
    bins = histogram([sample.num_text_tokens for sample in samples if isinstance(sample, MeasuredSample)], most)
    lines = [step_line(1, steps[0]), *masked_lines(samples)]
    for one in shown:
        say(f"\n{one.key}: {one.facts}", *([tokens_table(one.tokens)] if one.tokens else []))
    say("", sources_table(counts), columns_note(most), "", bars(bins), "", *lines)
    typed = invocation().command
    if not config.check_only:
        folder = run_folder()
        write_page(folder / "inspect.html", f"visllama inspect {shlex.join(typed)}", lines, counts, most, bins, shown)
        say(f"\nWrote {folder}: inspect.html")
    check_supervised(steps, most)
    of_train = [word for word in typed if word.partition("=")[0] not in _OWN_KEYS]
    say(f"Train on it:  {shlex.join(['visllama', 'train', *of_train])}")
    return Inspected(steps, counts, shown)


def masked_lines(samples: Sequence[Sample]) -> list[str]:
    """Return lines about the first samples of which nothing is learned, and how many more there are."""
    masked = [readable(f"masked: {sample.key}: {sample.fault}") for sample in samples if sample.fault]
    more = len(masked) - _MOST_TOLD
    return masked[:_MOST_TOLD] + ([f"masked: {more:,} more"] if more > 0 else [])


def check_supervised(steps: Sequence[SeenStep], most: int) -> None:
    """Refuse steps that have nothing to learn.

    Args:
        steps: That were seen.
        most: `stage.max_text_tokens`.

    Raises:
        ConfigError: Naming the step, why, and what to do.
    """
    for number, step in enumerate(steps, 1):
        if step.num_targets:
            continue
        faults = [sample.fault for sample in step.samples if sample.fault]
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(f.reason for f in faults).most_common())
        nothing = f"none of the {len(step.samples)} samples of step {number} has a supervised token ({reasons})"
        measured = [sample for sample in step.samples if isinstance(sample, MeasuredSample)]
        cut = [sample.num_text_tokens for sample in measured if sample.is_cut]
        if cut:
            raise ConfigError(
                f"stage.max_text_tokens={most}: {nothing}: no room is left for a response in texts of {min(cut):,} to "
                f"{max(cut):,} tokens: raise it, or shorten stage.prompt, data.sources.NAME.prompt or stage.template"
            )
        raise ConfigError(
            f"data.sources.{step.samples[0].source}: {nothing}: mend its records; the first: "
            f"{readable(faults[0].detail)}"
        )
