"""Inspect the first training steps of a run: print them as tables on the terminal, and write them as a page."""

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
_MOST_LISTED = 5


class Inspected(NamedTuple):
    """The results of an inspection of batches.

    Attributes:
        steps: The training steps that were loaded.
        counts: The counts of each source, followed by those of all sources if there are several.
        shown: The samples that were shown one by one, in the order of the run.
    """

    steps: list[SeenStep]
    counts: list[SourceCounts]
    shown: list[Shown]


def inspect_batches(config: InspectConfig, assembly: Assembly) -> Inspected:
    """Load the first training steps of a run, print them, and write `inspect.html` into the run's folder.

    No weight is loaded. With `check_only` the page is not written.

    Args:
        config: The configuration of the verb: that of `train`, and how many samples are loaded and shown.
        assembly: What `train` would be run with, as `assemble` of this verb returns it.

    Returns:
        The steps, the counts of each source, and the samples that were printed.

    Raises:
        ConfigError: If a step has no supervised token (one that the model learns to write); by then the page is
            written.
    """
    # The loader gives what `train` would, in the order of the run.
    maker = sample_maker(assembly.model, assembly.text)
    most = config.stage.max_text_tokens
    data = training_data(config, assembly, maker)
    steps = see(data, config.num_samples, config.samples)

    samples = [sample for step in steps for sample in step.samples]
    shown_samples = choose(steps, config.samples, maker.tokenizer)
    counts = count_sources(samples, assembly.order.names)
    measured_samples = [sample for sample in samples if isinstance(sample, MeasuredSample)]
    lengths = [sample.num_text_tokens for sample in measured_samples]
    bins = histogram(lengths, most)
    lines = [step_line(1, steps[0]), *masked_lines(samples)]

    _print_samples(shown_samples)
    say("", sources_table(counts), columns_note(most), "", bars(bins), "", *lines)

    words = invocation().command
    if not config.check_only:
        folder = run_folder()
        command = f"visllama inspect {shlex.join(words)}"
        write_page(folder / "inspect.html", command, lines, counts, most, bins, shown_samples)
        say(f"\nWrote {folder}: inspect.html")

    # Only now: the page shows why there is nothing to learn.
    check_supervised(steps, most)
    command_of_train = _command_of_train(words)
    say(f"Train on it:  {command_of_train}")
    return Inspected(steps, counts, shown_samples)


def _print_samples(shown: Sequence[Shown]) -> None:
    """Print the key and the facts of each sample, and a table of its tokens where it has some."""
    for sample in shown:
        heading = f"\n{sample.key}: {sample.facts}"
        if sample.tokens:
            say(heading, tokens_table(sample.tokens))
        else:
            say(heading)


def _command_of_train(words: Sequence[str]) -> str:
    """Return the command line that trains with these words of `inspect`'s command line, without those of its own."""
    words_of_train = ["visllama", "train"]
    for word in words:
        key, _, _ = word.partition("=")
        if key not in _OWN_KEYS:
            words_of_train.append(word)
    return shlex.join(words_of_train)


def masked_lines(samples: Sequence[Sample]) -> list[str]:
    """Return lines that name the samples from which nothing is learned (those with a `fault`), each with its reason.

    The first five samples have a line each; where there are more, a last line counts the others.
    """
    masked = [sample for sample in samples if sample.fault]
    lines = [readable(f"masked: {sample.key}: {sample.fault}") for sample in masked]

    # A source that is wrong as a whole would fill the terminal.
    num_more = len(lines) - _MOST_LISTED
    if num_more <= 0:
        return lines
    return [*lines[:_MOST_LISTED], f"masked: {num_more:,} more"]


def check_supervised(steps: Sequence[SeenStep], most: int) -> None:
    """Check that each training step has a supervised token: a step without one has nothing to learn.

    Args:
        steps: The training steps, as `see` returns them.
        most: The value of `stage.max_text_tokens`, for the message.

    Raises:
        ConfigError: If a step has no supervised token. The message names the step, the samples' faults and what to do.
    """
    for number, step in enumerate(steps, start=1):
        if step.num_targets:
            continue

        num_samples = len(step.samples)
        faults = [sample.fault for sample in step.samples if sample.fault]
        counts = Counter(fault.reason for fault in faults)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        problem = f"none of the {num_samples} samples of step {number} has a supervised token ({reasons})"

        # Where texts were cut, the settings have to change; where none was, the records.
        measured_samples = [sample for sample in step.samples if isinstance(sample, MeasuredSample)]
        lengths_of_cut = [sample.num_text_tokens for sample in measured_samples if sample.is_cut]
        if lengths_of_cut:
            shortest = min(lengths_of_cut)
            longest = max(lengths_of_cut)
            raise ConfigError(
                f"stage.max_text_tokens={most}: {problem}: no room is left for a response in texts of {shortest:,} to "
                f"{longest:,} tokens: raise it, or shorten stage.prompt, data.sources.NAME.prompt or stage.template"
            )

        source = step.samples[0].source
        first_detail = readable(faults[0].detail)
        raise ConfigError(f"data.sources.{source}: {problem}: mend its records; the first: {first_detail}")
