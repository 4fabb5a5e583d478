"""Build the tables of scores that are printed when a judgement ends, and the provenance that metrics.json holds."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from visllama.files import write_whole

_PACKAGES = ("visllama", "torch", "lightning", "transformers", "pycocoevalcap", "pillow")
_MOST_TYPES = 12
"""The most types of one kind that a table shows; more are in metrics.json alone."""
FROM_JUDGED_IMAGES = "of the images that are judged"
"""What metrics.json holds under `document_frequencies` if CIDEr counts how rare a word is in the judged images."""


def scores_table(name: str, evaluation: Mapping) -> Table:
    """Return a table of the scores of one evaluation of captions, to be printed by rich.

    The table shows the scores x100, as papers do, with their 95% intervals, the scores of the controls (with wrong
    pictures), and the scores of each type of image. More than 12 types are left out, and a note says so.

    Args:
        name: The name of the evaluation, for the title.
        evaluation: The entry of the evaluation in metrics.json, of which `n` and `metrics` are always needed.
    """
    controls = evaluation.get("controls", {})
    split = evaluation.get("split", "given captions")
    title = f"{name}: {split}, n = {evaluation['n']} (x100)"
    notes = "\n".join(_caption_notes(evaluation))
    table = Table("metric", title=title, caption=Text(notes))
    control_headers = [control.replace("_", " ") for control in controls]
    for header in ("score", "95% interval", *control_headers):
        table.add_column(header, justify="right")

    intervals = evaluation.get("intervals", {})
    for metric, value in evaluation["metrics"].items():
        score = _score(value, 100)
        interval = _interval(intervals.get(metric), 100)
        of_controls = [_score(scores.get(metric), 100) for scores in controls.values()]
        table.add_row(metric, score, interval, *of_controls)

    by_type = evaluation.get("by_type", {})
    for kind, scores_of_types in by_type.items():
        if len(scores_of_types) > _MOST_TYPES:
            continue
        for value in scores_of_types:
            _add_image_type(table, evaluation, kind, value)
    return table


def _add_image_type(table: Table, evaluation: Mapping, kind: str, value: str) -> None:
    """Add the rows of one type of image, with a score for each metric.

    Args:
        table: The table of the evaluation.
        evaluation: The entry of the evaluation in metrics.json.
        kind: The kind of type, for example `type`.
        value: The type, for example `in-domain`.
    """
    scores = evaluation["by_type"][kind][value]
    count = evaluation["counts"][kind][value]
    intervals = _of_type(evaluation, "intervals_by_type", kind, value) or {}

    # Names of types come from data: rich reads square brackets in a str as markup, and in a Text as they are.
    table.add_section()
    table.add_row(Text(f"{value}, n = {count}"))
    for metric, score in scores.items():
        interval = _interval(intervals.get(metric), 100)
        table.add_row(Text(f"  {metric}"), _score(score, 100), interval)


def _of_type(evaluation: Mapping, key: str, kind: str, value: str) -> Any:
    """Return `evaluation[key][kind][value]`: what an evaluation has of one type; None if it has nothing there."""
    of_kinds = evaluation.get(key, {})
    of_types = of_kinds.get(kind, {})
    return of_types.get(value)


def _caption_notes(evaluation: Mapping) -> Iterator[str]:
    """Yield the lines below a table of captions, which a reader has to know before comparing scores."""
    if "tokenizer" in evaluation:
        yield f"tokenizer: {evaluation['tokenizer']}"
    if evaluation.get("cut_off"):
        yield cut_off_note(evaluation)
    yield from _many_types(evaluation.get("by_type", {}))
    is_part = "n_of" in evaluation
    if is_part and evaluation["document_frequencies"] == FROM_JUDGED_IMAGES:
        yield (
            f"a part: {evaluation['n']:,} of {evaluation['n_of']:,} images, in which alone CIDEr counts how rare\n"
            f"a word is: it does not compare to that of all; document_frequencies=FILE takes other references"
        )
    if "origin" in evaluation:
        yield evaluation["origin"]


def cut_off_note(evaluation: Mapping) -> str:
    """Return a sentence that says how many texts `max_new_tokens` has cut off.

    Args:
        evaluation: The entry of the evaluation in metrics.json, with `decoding`, `cut_off` and `n`.
    """
    most = evaluation["decoding"].get("max_new_tokens")
    return f"{evaluation['cut_off']:,} of {evaluation['n']:,} were cut off by max_new_tokens={most}"


def vqa_table(name: str, evaluation: Mapping) -> Table:
    """Return a table of the scores of one evaluation of answers, to be printed by rich.

    The table shows the scores on the scale 0-100, with their 95% intervals, the scores of the controls (without the
    right pictures), and the scores of each type of question. A kind of type (for example `question_type`) with more
    than 12 types is left out, and a note says so.

    Args:
        name: The name of the evaluation, for the title.
        evaluation: The entry of the evaluation in metrics.json, of which `n` and `metrics` are always needed.
    """
    controls = evaluation.get("controls", {})
    by_type = evaluation.get("by_type", {})
    split = evaluation.get("split", "given answers")
    title = f"{name}: {split}, n = {evaluation['n']} (VQA accuracy, 0-100)"

    notes = list(_many_types(by_type))
    if evaluation.get("cut_off"):
        notes.append(cut_off_note(evaluation))
    if "origin" in evaluation:
        notes.append(evaluation["origin"])
    table_notes = Text("\n".join(notes)) if notes else None

    table = Table("metric", title=title, caption=table_notes, min_width=48)
    # Headers are broken over lines, so that the columns of several controls fit a terminal.
    control_headers = [control.replace("_", "\n") for control in controls]
    for header in ("n", "score", "95%\ninterval", *control_headers):
        table.add_column(header, justify="right", no_wrap=True)

    count = str(evaluation["n"])
    intervals = evaluation.get("intervals", {})
    for metric, value in evaluation["metrics"].items():
        words = metric.replace("_", " ")
        interval = _interval(intervals.get(metric))
        of_controls = [_score(scores.get(metric)) for scores in controls.values()]
        table.add_row(words, count, _score(value), interval, *of_controls)

    for kind, scores in by_type.items():
        if len(scores) > _MOST_TYPES:
            continue
        table.add_section()
        table.add_row(kind.replace("_", " "))
        for value in scores:
            _add_question_type(table, evaluation, kind, value)
    return table


def _add_question_type(table: Table, evaluation: Mapping, kind: str, value: str) -> None:
    """Add the rows of one type of question.

    Args:
        table: The table of the evaluation.
        evaluation: The entry of the evaluation in metrics.json.
        kind: The kind of type, for example `answer_type`.
        value: The type, for example `yes/no`.
    """
    score = evaluation["by_type"][kind][value]
    interval = _of_type(evaluation, "intervals_by_type", kind, value)
    count = _of_type(evaluation, "counts", kind, value)
    title = Text(f"  {value}")
    count_words = "" if count is None else str(count)

    # Yes/no questions have every metric by its name in the place of the accuracy.
    if isinstance(score, Mapping):
        table.add_row(title, count_words)
        intervals = interval or {}
        for metric, number in score.items():
            words = metric.replace("_", " ")
            table.add_row(f"    {words}", "", _score(number), _interval(intervals.get(metric)))
        return

    of_controls = []
    controls = evaluation.get("controls", {})
    for control in controls.values():
        control_score = _of_type(control, "by_type", kind, value)
        of_controls.append(_score(control_score))
    table.add_row(title, count_words, _score(score), _interval(interval), *of_controls)


def _many_types(by_type: Mapping[str, Mapping]) -> Iterator[str]:
    """Yield a note for each kind that has more types than a table shows."""
    for kind, scores in by_type.items():
        if len(scores) > _MOST_TYPES:
            yield f"{kind}: {len(scores)}, in metrics.json"


def _interval(bounds: Sequence[float] | None, scale: int = 1) -> str:
    """Return an interval, times `scale`, as the text of a table's cell; an empty text if there is none."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{scale * low:.1f} - {scale * high:.1f}"


def _score(value: float | None, scale: int = 1) -> str:
    """Return a score, times `scale`, as the text of a table's cell; an empty text if there is none."""
    return "" if value is None else f"{scale * value:.1f}"


def provenance(**facts: object) -> dict[str, Any]:
    """Return a mapping of what made a result: `versions` of packages, the `machine`, and the state of `git`.

    `git` holds the `commit` of visllama's checkout, and under `dirty` whether files differ from that commit. `git` is
    None if visllama does not run from a checkout.

    Args:
        facts: Further entries of the mapping, for example `weights="RUN/weights"`. An entry named `versions`, `machine`
            or `git` replaces the one above.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        versions[package] = version(package)

    commit = _git("rev-parse", "HEAD")
    git_state = None
    if commit:
        changes = _git("status", "--porcelain")
        git_state = {"commit": commit, "dirty": bool(changes)}

    return {
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "git": git_state,
        **facts,
    }


def _git(*command: str) -> str | None:
    """Return what git prints about this package's checkout; None if the package lies in no checkout of ours."""
    root = Path(__file__).resolve().parents[2]
    # An installed package may lie inside somebody else's repository, which git would describe.
    if not (root / ".git").exists():
        return None

    try:
        process = subprocess.run(
            ["git", *command],
            capture_output=True,
            text=True,
            timeout=10,
            cwd=root,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def write_json(path: Path, content: object) -> None:
    """Write an indented JSON file; a crash leaves the old file or the new one, and never a part.

    Args:
        path: The path of the file, which is replaced if it exists; its folder has to exist.
        content: Values that JSON can hold: mappings, lists, texts, numbers, booleans and None.

    Raises:
        ValueError: If the content holds a NaN or an infinity, which JSON does not have.
        TypeError: If the content holds a value of another type.
        WriteFailed: If the disk is full or fails.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
