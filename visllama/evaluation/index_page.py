"""`index.html`: one page that shows a run's scores and curves, and links every file of its folder."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from visllama.files import write_whole

_DESCRIPTIONS = {
    ".hydra": "what Hydra composed and was told",
    "captions.json": "the captions as COCO results",
    "answers.json": "the answers as VQA results",
    "checkpoints": "what resume= goes on from",
    "command.yaml": "what was typed",
    "config.yaml": "every value of the configuration",
    "controls": "what the model wrote without sight of the pictures",
    "consumed.jsonl": "the items of each step",
    "curves.png": "losses, learning rates, gradient norm and throughput over the steps",
    "evaluations": "what was judged",
    "hparams.yaml": "the configuration as the loggers were told it",
    "logged.json": "what trackers were given of steps that came again",
    "fit-profile.txt": "how long each part of a step takes",
    "gallery.html": "pictures with what was said of them, to be sorted and searched",
    "log.txt": "all that was said, and what no terminal shows",
    "metrics.csv": "what was logged, step by step",
    "metrics.json": "every score with its interval and controls, and what made it",
    "predictions.key.json": "what made the predictions: only the same goes on with them",
    "predictions.jsonl": "what the model wrote, one record a line",
    "references.json": "the references as COCO annotations",
    "scores.jsonl": "every score of each image, to compare systems by",
    "stacks": "what each rank was doing when the run hung",
    "multirun.yaml": "the configuration of the sweep",
    "search.journal": "the trials of the search, as Optuna keeps them",
    "sweep.json": "the jobs of the sweep and their scores",
    "sweep.png": "the score over what was swept",
    "tensorboard": "event files: tensorboard --logdir shows them",
    "trackio": "trackio's database: TRACKIO_DIR=this trackio show",
    "wandb": "what wandb keeps on this machine",
    "weights": "the trained tensors, and what rebuilds the model",
}
"""The text that the page shows behind the name of a file or folder."""
_FOLLOWED = ("evaluations",)
"""The folders whose own files are listed too."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem;max-width:60rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
th,td{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,.files td{text-align:left}
img{max-width:100%}
small{color:#666}
"""
_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<meta name=viewport content="width=device-width">"""


def write_index(folder: Path) -> None:
    """Write `index.html` into the folder of a run or of a sweep: a page that shows scores and links the files.

    The page shows the scores of the folder's `metrics.json`, and its `curves.png` and `sweep.png`; each is left out if
    there is no such file.

    Args:
        folder: An existing folder.

    Raises:
        ValueError: If `metrics.json` is no valid JSON.
        WriteFailed: If the disk is full or fails.
    """
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    title = html.escape(f"{folder.parent.name}/{folder.name}")

    tables = [_scores(name, evaluation) for name, evaluation in metrics.get("evaluations", {}).items()]
    pictures = []
    for name in ("curves.png", "sweep.png"):
        if (folder / name).is_file():
            pictures.append(f'<p><img src="{name}" alt="{_DESCRIPTIONS[name]}"></p>')

    # Names of files and of evaluations are escaped, since a user chooses them; descriptions are our own.
    rows = []
    for entry in _entries(folder):
        link = f'<a href="{quote(entry.link)}">{html.escape(entry.name)}</a>'
        rows.append(f"<tr><td>{link}</td><td><small>{entry.description}</small></td></tr>")

    content = [
        f"{_HEAD}<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        *tables,
        *pictures,
        "<h2>Files</h2><table class=files>",
        *rows,
        "</table></html>",
    ]
    write_whole(folder / "index.html", "".join(content))


def _scores(name: str, evaluation: Mapping[str, Any]) -> str:
    """Return the table of an evaluation's scores.

    Args:
        name: The name of the evaluation.
        evaluation: The entry of the evaluation in metrics.json.
    """
    # Captions are shown x100, as papers print them; answers are scored from 0 to 100 already.
    scale = 1 if evaluation["task"] == "vqa" else 100
    controls = evaluation.get("controls", {})
    headers = ["metric", "score", "95% interval", *[control.replace("_", " ") for control in controls]]
    rows = [_row("th", headers)]

    for metric, value in evaluation["metrics"].items():
        # One image alone has no interval.
        interval = evaluation.get("intervals", {}).get(metric) or ()
        bounds = [_number(bound, scale) for bound in interval]
        of_controls = [_number(scores.get(metric), scale) for scores in controls.values()]
        cells = [metric.replace("_", " "), _number(value, scale), " - ".join(bounds), *of_controls]
        rows.append(_row("td", cells))

    judged = f"{evaluation.get('split', 'given texts')}, n = {evaluation['n']:,}"
    return f"<h2>{html.escape(name)}: {html.escape(judged)}</h2><table>{''.join(rows)}</table>"


def _number(value: float | None, scale: int) -> str:
    return "" if value is None else f"{scale * value:.1f}"


def _row(kind: str, cells: list[str]) -> str:
    """Return a row of a table.

    Args:
        kind: The element of a cell: `td` or `th`.
        cells: The texts of the cells, which are escaped here.
    """
    escaped = [f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells]
    return f"<tr>{''.join(escaped)}</tr>"


def _order(path: Path) -> tuple[int, str]:
    """Return the key that sorts names as words, and behind them the numbers of a sweep's jobs as numbers."""
    number = int(path.name) + 1 if path.name.isdecimal() else 0
    return number, path.name


class _Entry(NamedTuple):
    """A file or folder as the page lists it."""

    name: str
    link: str
    description: str


def _entries(folder: Path, prefix: str = "") -> Iterator[_Entry]:
    """Yield the files and folders that lie in a folder.

    Args:
        folder: The folder.
        prefix: The path of the folder from the page, as "evaluations/".
    """
    for path in sorted(folder.iterdir(), key=_order):
        name = f"{prefix}{path.name}"
        description = _DESCRIPTIONS.get(path.name, "")
        if path.name == "index.html":
            continue

        if not path.is_dir():
            yield _Entry(name, name, description)
        elif (path / "index.html").is_file():
            yield _Entry(f"{name}/", f"{name}/index.html", "a job of the sweep")
        else:
            yield _Entry(f"{name}/", f"{name}/", description)
            if path.name in _FOLLOWED or prefix:
                yield from _entries(path, f"{name}/")
