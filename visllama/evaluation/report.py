"""What a judgement leaves: the table at the end, and metrics.json with what made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from visllama.files import write_whole

_PACKAGES = ("visllama", "torch", "lightning", "transformers", "pycocoevalcap", "pillow")
_MOST_TYPES = 12
FROM_JUDGED_IMAGES = "of the images that are judged"
"""Where CIDEr counts its document frequencies unless a file is given."""


def scores_table(name: str, evaluation: Mapping) -> Table:
    """Show one evaluation. Scores are printed x100, as papers do; the files hold pycocoevalcap's own scale."""
    controls = evaluation.get("controls", {})
    table = Table("metric", title=f"{name}: {evaluation.get('split', 'given captions')}, n = {evaluation['n']} (x100)")
    table.caption = Text("\n".join(_caption_notes(evaluation)))
    for header in ("score", "95% interval", *[control.replace("_", " ") for control in controls]):
        table.add_column(header, justify="right")
    for metric, value in evaluation["metrics"].items():
        interval = _interval(evaluation.get("intervals", {}).get(metric), 100)
        beside = [f"{100 * scores[metric]:.1f}" if metric in scores else "" for scores in controls.values()]
        table.add_row(metric, f"{100 * value:.1f}", interval, *beside)
    counts = evaluation.get("counts", {})
    for kind, scores in evaluation.get("by_type", {}).items():
        for value, metrics in scores.items() if len(scores) <= _MOST_TYPES else ():
            table.add_section()
            table.add_row(Text(f"{value}, n = {counts[kind][value]}"))
            intervals = _of_type(evaluation, kind, value)
            for metric, score in metrics.items():
                table.add_row(Text(f"  {metric}"), f"{100 * score:.1f}", _interval(intervals.get(metric), 100))
    return table


def _caption_notes(evaluation: Mapping) -> Iterator[str]:
    """Yield what has to be known of the scores of captions before they are compared."""
    if "tokenizer" in evaluation:
        yield f"tokenizer: {evaluation['tokenizer']}"
    if evaluation.get("cut_off"):
        yield cut_off_note(evaluation)
    yield from _many_types(evaluation.get("by_type", {}))
    if "n_of" in evaluation and evaluation["document_frequencies"] == FROM_JUDGED_IMAGES:
        yield (
            f"a part: {evaluation['n']:,} of {evaluation['n_of']:,} images, in which alone CIDEr counts how rare\n"
            f"a word is: it does not compare to that of all; document_frequencies=FILE takes other references"
        )
    if "origin" in evaluation:
        yield evaluation["origin"]


def cut_off_note(evaluation: Mapping) -> str:
    """Return how many texts `max_new_tokens` has cut off."""
    most = evaluation["decoding"].get("max_new_tokens")
    return f"{evaluation['cut_off']:,} of {evaluation['n']:,} were cut off by max_new_tokens={most}"


def vqa_table(name: str, evaluation: Mapping) -> Table:
    """Show one evaluation of answers: scores on the scale 0-100, whole and by type; many types stay in the file."""
    controls, counts = evaluation.get("controls", {}), evaluation.get("counts", {})
    title = f"{name}: {evaluation.get('split', 'given answers')}, n = {evaluation['n']} (VQA accuracy, 0-100)"
    by_type = evaluation.get("by_type", {})
    notes = list(_many_types(by_type))
    if evaluation.get("cut_off"):
        notes.append(cut_off_note(evaluation))
    if "origin" in evaluation:
        notes.append(evaluation["origin"])
    table = Table("metric", title=title, caption=Text("\n".join(notes)) if notes else None, min_width=48)
    for header in ("n", "score", "95%\ninterval", *[control.replace("_", "\n") for control in controls]):
        table.add_column(header, justify="right", no_wrap=True)
    for metric, value in evaluation["metrics"].items():
        interval = _interval(evaluation.get("intervals", {}).get(metric))
        beside = [_score(scores.get(metric)) for scores in controls.values()]
        table.add_row(metric.replace("_", " "), str(evaluation["n"]), _score(value), interval, *beside)
    for kind, scores in by_type.items():
        if len(scores) > _MOST_TYPES:
            continue
        table.add_section()
        table.add_row(kind.replace("_", " "))
        for value, score in scores.items():
            num = str(counts.get(kind, {}).get(value, ""))
            intervals = _of_type(evaluation, kind, value)
            if isinstance(score, Mapping):  # of yes/no questions: every metric
                table.add_row(Text(f"  {value}"), num)
                for metric, part in score.items():
                    table.add_row(f"    {metric.replace('_', ' ')}", "", _score(part), _interval(intervals.get(metric)))
            else:
                beside = [_score(control.get("by_type", {}).get(kind, {}).get(value)) for control in controls.values()]
                table.add_row(Text(f"  {value}"), num, _score(score), _interval(intervals or None), *beside)
    return table


def _many_types(by_type: Mapping[str, Mapping]) -> Iterator[str]:
    """Yield the kinds that have more values than a table is to show."""
    for kind, scores in by_type.items():
        if len(scores) > _MOST_TYPES:
            yield f"{kind}: {len(scores)}, in metrics.json"


def _of_type(evaluation: Mapping, kind: str, value: str) -> Mapping[str, Sequence[float]] | Sequence[float]:
    """Return the intervals of a type's scores by the name of the metric, or that of its one score; empty is none."""
    return evaluation.get("intervals_by_type", {}).get(kind, {}).get(value, {})


def _interval(bounds: Sequence[float] | None, scale: int = 1) -> str:
    return "" if bounds is None else f"{scale * bounds[0]:.1f} - {scale * bounds[1]:.1f}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def provenance(**facts: object) -> dict:
    """Return what made a result: versions, machine, the state of the source tree, and the caller's own facts."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "git": commit and {"commit": commit, "dirty": bool(_git("status", "--porcelain"))},
    } | facts


def _git(*command: str) -> str | None:
    """Ask git about the folder that this package lies in; None where it is in no checkout of ours."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", *command], capture_output=True, text=True, timeout=10, cwd=root, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        ValueError: If it holds a NaN or an infinity, which JSON does not have.
    """
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
