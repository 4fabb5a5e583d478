"""Write the texts of an evaluation, from where an earlier judgement was stopped; a bar shows the time that is left."""

from __future__ import annotations

import time

import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visllama.console import bars, is_first_rank, is_terminal, say
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.prediction_log import PredictionLog, Written
from visllama.evaluation.prompts import Prompts
from visllama.model.visllama import VisLlama

_SAY_EVERY_S = 60
"""How often a line says where it is, off a terminal."""


def generation_bars() -> Progress:
    """Return bars for `write_texts`, which show how many a second are written, and the time that is left."""
    return bars(
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )


def write_texts(
    model: VisLlama, captioner: Captioner, prompts: Prompts, log: PredictionLog, progress: Progress, name: str
) -> list[Written]:
    """Write on after prompts, and log each batch as soon as it is done.

    Args:
        model: With all its weights.
        captioner: Generates.
        prompts: To write on after.
        log: Where the texts go, and what an earlier judgement has left there.
        progress: The bars of `generation_bars`.
        name: The name of the evaluation or of its control, for the bar.

    Returns:
        The text of each prompt.
    """
    written = _read_on_first_rank(log)
    num_before = len(written)
    if num_before:
        say(f"{name}: {num_before:,} of {len(prompts):,} were written before: going on behind them")
    if is_first_rank():
        log.begin(num_before)

    task = progress.add_task(name, total=len(prompts), completed=num_before, rate="")
    started = time.perf_counter()
    told = started
    for batch in captioner.batches(model, prompts, num_before):
        if is_first_rank():
            log.add(batch)
        written += batch
        now = time.perf_counter()
        per_second = (len(written) - num_before) / (now - started)
        progress.update(task, completed=len(written), rate=f"{per_second:.1f}/s")
        if not is_terminal() and now - told > _SAY_EVERY_S:
            minutes = (len(prompts) - len(written)) / per_second / 60
            say(f"{name}: {len(written):,} of {len(prompts):,}, {per_second:.1f} a second, {minutes:.0f} min left")
            told = now
    if is_first_rank():
        log.close()
    return written


def _read_on_first_rank(log: PredictionLog) -> list[Written]:
    """Return what the first rank finds in the log: all ranks go on from the same prompt."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return log.read()
    found: list = [None]
    if is_first_rank():
        try:
            found[0] = log.read()
        except Exception as error:  # all ranks have to hear of it: one alone would leave the others waiting
            found[0] = error
    dist.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
