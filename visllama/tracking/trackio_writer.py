"""The process that writes for trackio: a line of JSON says what, and the end of the lines that the run has ended."""

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
    """Write what comes in, until nothing more does."""
    # Ctrl-C and SIGTERM go to all that belongs to a run: this ends with the run, when all is written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        _WRITE[message["kind"]](message)
    trackio.finish()


def _begin(message: Mapping[str, Any]) -> None:
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
    trackio.log(message["values"], step=message["step"])


def _log_table(message: Mapping[str, Any]) -> None:
    rows = []
    for row in message["rows"]:
        named = dict(zip(message["columns"], row, strict=True))
        rows.append([_decode(value, str(named.get("text", ""))) for value in row])
    table = trackio.Table(columns=list(message["columns"]), data=rows)
    trackio.log({message["name"]: table}, step=message["step"])


def _decode(value: Any, caption: str) -> Any:
    """Return a cell; one that holds a picture with its caption."""
    if not isinstance(value, dict):
        return value
    image = Image.open(io.BytesIO(base64.b64decode(value["png"])), formats=["PNG"])
    return trackio.Image(image, caption=caption)


def _log_page(message: Mapping[str, Any]) -> None:
    trackio.log({message["name"]: trackio.Html(message["path"], inject=False)}, step=message["step"])


def _log_weights(message: Mapping[str, Any]) -> None:
    artifact = trackio.Artifact("weights", type="model")
    artifact.add_dir(message["path"])
    trackio.log_artifact(artifact)


_WRITE = {
    "begin": _begin,
    "figures": _log_figures,
    "table": _log_table,
    "page": _log_page,
    "weights": _log_weights,
}

if __name__ == "__main__":
    main()
