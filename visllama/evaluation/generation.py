"""Generate the texts of an evaluation, and log them, so that a judgement that was stopped can go on from its log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visllama.console import bars, is_first_rank, is_terminal, say
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.prediction_log import PredictionLog, Written
from visllama.evaluation.prompts import Prompts
from visllama.evaluation.task import Task
from visllama.model.visllama import VisLlama

_SAY_EVERY_S = 60
"""The seconds between two lines about the progress, where no terminal shows the bar."""


def generation_bars() -> Progress:
    """Return progress bars for `write_texts`, which show the number of texts a second and the time that is left.

    Use them as a context manager. A task that is added to them needs a text as the field `rate`.
    """
    return bars(
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )


class Generated(NamedTuple):
    """The texts of an evaluation and of its controls, which are the same prompts with wrong pictures or none.

    Attributes:
        written: The text of each prompt, in the order of the prompts.
        controls: The text of each prompt in each control, by the control's name and in the order of the prompts.
        seconds: The seconds that `written` took to generate in this process, without the controls.
    """

    written: list[Written]
    controls: dict[str, list[Written]]
    seconds: float


def write_all_texts(
    model: VisLlama,
    captioner: Captioner,
    task: Task,
    ids: Sequence[Mapping],
    key: str,
    controls: Mapping[str, Prompts],
) -> Generated:
    """Generate the texts of an evaluation, then those of its controls, and log them; bars show the progress.

    Controls are the same prompts with wrong pictures or none. Texts that a log holds already are not generated again.
    If there are several ranks (processes that share the work), all of them have to call this function.

    Args:
        model: A model with all its weights.
        captioner: The captioner that generates.
        task: The evaluation, in whose folder the logs lie.
        ids: The id of each prompt, as `{"image_id": 7}`, in the order of the prompts.
        key: The key under which a line of a log holds the text: `caption` or `answer`.
        controls: The prompts of each control by the control's name, as many as the evaluation has.

    Raises:
        ConfigError: If a log holds texts that were made by something else and may not be overwritten, a line of a log
            is damaged, or a picture cannot be decoded.
    """
    control_texts = {}
    started = time.perf_counter()
    with generation_bars() as progress:
        log = task.log(ids, key)
        written = write_texts(model, captioner, task.prompts, log, progress, task.name)
        seconds = time.perf_counter() - started

        for control, prompts in controls.items():
            log = task.log(ids, key, control)
            control_texts[control] = write_texts(model, captioner, prompts, log, progress, control)
    return Generated(written, control_texts, seconds)


def write_texts(
    model: VisLlama,
    captioner: Captioner,
    prompts: Prompts,
    log: PredictionLog,
    progress: Progress,
    name: str,
) -> list[Written]:
    """Generate the texts of prompts, and add each batch to a log as soon as it is done.

    If there are several ranks (processes that share the work), all of them have to call this function; the first rank
    writes the log.

    Args:
        model: A model with all its weights.
        captioner: The captioner that generates.
        prompts: The prompts.
        log: The log of these prompts, not yet opened. The texts that its file holds already are not generated again.
        progress: The bars of `generation_bars`, entered by `with`.
        name: The name beside the bar: that of the evaluation, or of its control (its prompts with wrong pictures).

    Returns:
        The text of each prompt, in the order of the prompts and on all ranks, including those of the log.

    Raises:
        ConfigError: If the log holds texts that were made by something else and may not be overwritten, a line of the
            log is damaged, or a picture cannot be decoded.
    """
    written = _read_on_first_rank(log)
    num_before = len(written)
    if num_before:
        say(f"{name}: {num_before:,} of {len(prompts):,} were written before: going on behind them")
    if is_first_rank():
        log.begin(num_before)

    task = progress.add_task(name, total=len(prompts), completed=num_before, rate="")
    started = time.perf_counter()
    last_said = started
    for batch in captioner.batches(model, prompts, num_before):
        if is_first_rank():
            log.add(batch)
        written += batch

        # Texts that were there before took no time of this run.
        now = time.perf_counter()
        per_second = (len(written) - num_before) / (now - started)
        progress.update(task, completed=len(written), rate=f"{per_second:.1f}/s")

        if not is_terminal() and now - last_said > _SAY_EVERY_S:
            minutes = (len(prompts) - len(written)) / per_second / 60
            say(f"{name}: {len(written):,} of {len(prompts):,}, {per_second:.1f} a second, {minutes:.0f} min left")
            last_said = now

    if is_first_rank():
        log.close()
    return written


def _read_on_first_rank(log: PredictionLog) -> list[Written]:
    """Return the texts that the first rank reads from the log, so that all ranks go on from the same prompt."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return log.read()

    # torch fills the list on the other ranks.
    broadcast: list[list[Written] | Exception] = [[]]
    if is_first_rank():
        try:
            broadcast[0] = log.read()
        except Exception as error:
            # An error is broadcast too: raised on the first rank alone, it would leave the others waiting.
            broadcast[0] = error
    dist.broadcast_object_list(broadcast)

    texts_or_error = broadcast[0]
    if isinstance(texts_or_error, Exception):
        raise texts_or_error
    return texts_or_error
