"""Program that logs to trackio: it reads messages from standard input, one line of JSON each, until the input ends."""

from __future__ import annotations

import base64
import io
import json
import signal
import sys
from collections.abc import Mapping
from typing import Any

import trackio
from PIL import Image


def main() -> None:
    """Read messages from standard input and log each one to trackio, until the input ends; then end trackio's run.

    Each line is a JSON object whose `kind` is a key of `_LOG_BY_KIND`; the first one has the kind "begin". SIGINT,
    SIGTERM and SIGUSR1 are ignored meanwhile.
    """
    # These signals reach all processes of a run. This one ends with its input, when everything is written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    for line in sys.stdin:
        message = json.loads(line)
        log = _LOG_BY_KIND[message["kind"]]
        log(message)

    trackio.finish()


def _begin(message: Mapping[str, Any]) -> None:
    """Begin trackio's run, or continue the one that has the same name."""
    trackio.init(
        project=message["project"],
        name=message["name"],
        group=message["group"],
        config=message["config"],
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )


def _log_figures(message: Mapping[str, Any]) -> None:
    """Log the figures of a step."""
    trackio.log(message["values"], step=message["step"])


def _log_table(message: Mapping[str, Any]) -> None:
    """Log a table; the caption of a picture is the value in the column `text` of its row."""
    columns = message["columns"]

    rows = []
    for row in message["rows"]:
        value_by_column = dict(zip(columns, row, strict=True))
        caption = str(value_by_column.get("text", ""))
        rows.append([_decode(value, caption) for value in row])

    table = trackio.Table(columns=list(columns), data=rows)
    trackio.log({message["name"]: table}, step=message["step"])


def _decode(value: Any, caption: str) -> Any:
    """Return a cell of a table; an encoded picture becomes trackio's image, with its caption."""
    if not isinstance(value, dict):
        return value

    content = base64.b64decode(value["png"])
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    return trackio.Image(image, caption=caption)


def _log_page(message: Mapping[str, Any]) -> None:
    """Log an HTML page."""
    page = trackio.Html(message["path"], inject=False)
    trackio.log({message["name"]: page}, step=message["step"])


def _log_weights(message: Mapping[str, Any]) -> None:
    """Log a folder of weights as an artifact."""
    artifact = trackio.Artifact("weights", type="model")
    artifact.add_dir(message["path"])

    trackio.log_artifact(artifact)


_LOG_BY_KIND = {
    "begin": _begin,
    "figures": _log_figures,
    "table": _log_table,
    "page": _log_page,
    "weights": _log_weights,
}

if __name__ == "__main__":
    main()
