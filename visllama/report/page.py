"""Write the page `report.html`: the comparison of two runs, and the pictures whose scores changed most.

One file that opens offline. jinja2 escapes all that comes from data, and the page allows itself one script by its hash.
The template is `report/templates/report.html.jinja`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from visllama.evaluation.statistics import NUM_RESAMPLES
from visllama.files import write_whole
from visllama.images.inline import data_address
from visllama.report.judged_run import JudgedRun
from visllama.report.paired import Comparison
from visllama.report.shown import Shown

_SCRIPT = """
for (const form of document.forms) {
  const grid = form.nextElementSibling, cards = [...grid.children];
  const orders = {
    changed: (a, b) => Math.abs(b.dataset.difference) - Math.abs(a.dataset.difference),
    won: (a, b) => b.dataset.difference - a.dataset.difference,
    lost: (a, b) => a.dataset.difference - b.dataset.difference,
    id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, undefined, {numeric: true}),
  };
  const update = () => {
    const words = form.find.value.toLowerCase();
    cards.sort(orders[form.sort.value]);
    for (const card of cards) {
      card.hidden = !card.textContent.toLowerCase().includes(words);
      grid.append(card);
    }
    form.count.value = cards.filter(card => !card.hidden).length + " shown";
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  update();
}
"""
# The page's security policy names this hash: no other script, as one in a caption, would run.
_SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_SURE = 0.05
"""A difference with a smaller p-value is coloured."""


class Row(NamedTuple):
    """The comparison of one metric as texts, with values of captions x100.

    Attributes:
        metric: The metric's name.
        first: The first run's value, with one decimal.
        second: The second run's value, with one decimal.
        difference: The second value minus the first, with its sign and two decimals.
        interval: The 95% interval of the difference, for example "-0.31 to +1.20".
        p: The p-value of the difference, with four decimals.
        kind: "won" where the second value is higher and the p-value below 0.05, "lost" where it is lower and the
            p-value below 0.05; otherwise "".
    """

    metric: str
    first: str
    second: str
    difference: str
    interval: str
    p: str
    kind: str


class Section(NamedTuple):
    """An evaluation as the page shows it.

    Attributes:
        comparison: The comparison of both runs.
        scale: The factor from a score in the files of scores to the score that is shown, as `scale_of` returns it.
        rows: The comparison of each metric as texts.
        shown: The images that changed most.
    """

    comparison: Comparison
    scale: int
    rows: list[Row]
    shown: list[Shown]


def scale_of(task: str) -> int:
    """Return the factor from a score in files to the score that is shown: 100 for the task "caption", otherwise 1."""
    return 100 if task == "caption" else 1


def rows_of(comparison: Comparison) -> list[Row]:
    """Return the comparison of each metric as texts, in the order of `comparison.metrics`."""
    scale = scale_of(comparison.task)
    rows = []
    for name, metric in comparison.metrics.items():
        value, (low, high), p = metric.difference
        # The page colours a row by its kind.
        kind = ""
        if p < _SURE:
            kind = "won" if value > 0 else "lost"

        row = Row(
            metric=name,
            first=f"{scale * metric.first:.1f}",
            second=f"{scale * metric.second:.1f}",
            difference=signed(scale * value),
            interval=f"{signed(scale * low)} to {signed(scale * high)}",
            p=f"{p:.4f}",
            kind=kind,
        )
        rows.append(row)
    return rows


def signed(value: float) -> str:
    """Return a difference with its sign and two decimals: "+1.20"; "0.00" has no sign. The value is not scaled."""
    # Rounded first: "-0.00" would look like a loss.
    text = f"{value:+.2f}"
    if float(text) == 0:
        return text[1:]
    return text


def write_page(
    path: Path,
    runs: Sequence[JudgedRun],
    comparisons: Mapping[str, Comparison],
    shown: Mapping[str, Sequence[Shown]],
    curves: Path | None,
) -> None:
    """Write the comparison of two runs as one HTML file, whole or not at all.

    Args:
        path: The path of the HTML file; a file that is there is replaced.
        runs: The two runs, the first of which is A.
        comparisons: The comparison of each evaluation, by the evaluation's name, in the order of the page.
        shown: The images that changed most, by the name of each evaluation in `comparisons`.
        curves: The path of the plot of both runs' losses, which becomes part of the page; None where there is none.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    sections = []
    for name, comparison in comparisons.items():
        section = Section(
            comparison=comparison,
            scale=scale_of(comparison.task),
            rows=rows_of(comparison),
            shown=list(shown[name]),
        )
        sections.append(section)

    # A name that the template has and this call has not is an error, not an empty text.
    environment = Environment(
        loader=PackageLoader("visllama.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    page = template.render(
        first=runs[0],
        second=runs[1],
        sections=sections,
        num_resamples=NUM_RESAMPLES,
        curves=_picture(curves),
        script=_SCRIPT,
        script_sha256=_SCRIPT_SHA256,
        signed=signed,
    )
    write_whole(path, page)


def _picture(path: Path | None) -> str | None:
    """Return a picture as an address that holds it whole, so that the page is one file."""
    if path is None:
        return None
    with Image.open(path) as image:
        return data_address(image)
