"""Write what a run logs to trackio's database, which stays on this machine.

When trackio is imported it reads the folder of its database from the environment, asks the Hugging Face hub who the
user is, and prints. So each run uses it in a process of its own, which has none of the user's tokens and is offline and
silent (`trackio_writer.py`).
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from visllama.console import say
from visllama.tracking.tracker import PICTURE_COLUMNS, Picture, Tracker

_END_S = 30.0
"""Seconds that the process has to write the rest when the run ends."""
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Environment variables that the process does not get."""


class TrackioTracker(Tracker):
    """Tracker that writes what a run logs to trackio's database in a folder.

    A process of its own does the writing. It starts with the first metrics, pictures, table, page or weights.

    Args:
        project: The name of trackio's project that the run belongs to.
        name: The name of the run, in which `/` becomes `_`.
        save_dir: The folder of trackio's database and pictures.
        group: The name of a group of runs, such as the jobs of a sweep; None is no group.
        id: An identity that tells runs of the same name apart. Its last eight characters are added to the name; a
            resumed run with the same name and id continues the same run.
        log_weights: Whether the trained weights are kept as an artifact, which is a copy of them in `save_dir`.
    """

    def __init__(
        self,
        project: str,
        name: str,
        save_dir: str,
        group: str | None = None,
        id: str | None = None,
        log_weights: bool = False,
    ) -> None:
        super().__init__()
        self._project = project
        self._group = group
        self._folder = Path(save_dir)
        self._keeps_weights = log_weights

        # trackio knows a run by its name: runs of one name would become one.
        self._run_name = name.replace("/", "_")
        if id:
            self._run_name += f" {id[-8:]}"

        self._params: dict[str, Any] = {}
        self._writer: _Writer | None = None

    @property
    def name(self) -> str:
        """The name of trackio's project."""
        return self._project

    @property
    def version(self) -> str:
        """The name of trackio's run, with the end of the id."""
        return self._run_name

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Keep a run's configuration, to be sent when the run begins; later calls change nothing that was sent."""
        # They are sent with the first message, by which the run begins.
        self._params |= params

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics of an optimizer step, without those that were sent before the run was stopped.

        Args:
            metrics: Numbers such as losses and learning rates, by name.
            step: The optimizer step; with None, all metrics are sent.
        """
        new = {name: float(value) for name, value in self.without_logged(metrics, step).items()}
        if new:
            self._send("figures", values=new, step=step)

    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Send pictures with their texts as a table `name` of an optimizer step, one row of `PICTURE_COLUMNS` each."""
        rows = []
        for picture in pictures:
            image = _encode(picture.image)
            rows.append([picture.source, picture.key, image, picture.prompt, picture.text, picture.reference])

        self._send("table", name=name, columns=PICTURE_COLUMNS, rows=rows, step=step)

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        """Send a table `name` of an optimizer step, whose rows have a text or a number for each column."""
        lists = [list(row) for row in rows]
        self._send("table", name=name, columns=list(columns), rows=lists, step=step)

    def log_page(self, name: str, path: Path, step: int) -> None:
        """Send the path of an HTML page, which the writing process reads and logs as `name` at an optimizer step."""
        self._send("page", name=name, path=str(path.absolute()), step=step)

    def log_weights(self, folder: Path) -> None:
        """Have the weights in a folder copied as an artifact, if the tracker was built with `log_weights`."""
        if self._keeps_weights:
            self._send("weights", path=str(folder.absolute()))

    def close(self, exit_code: int) -> None:
        """Wait until everything is written, for a minute at most, and end the writing process.

        The exit code is not shown. A second call does nothing.
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _send(self, kind: str, **content: object) -> None:
        """Send the writing process a message; the first one starts the process, so a run that logs nothing has none.

        Args:
            kind: The kind of the message, a key of `_LOG_BY_KIND` in `trackio_writer.py`.
            content: The message's other values, which JSON can hold.
        """
        if self._writer is None:
            self._writer = _Writer(self._folder)

            identity = {"project": self._project, "name": self._run_name, "group": self._group}
            self._writer.send({"kind": "begin", **identity, "config": self._params})

        self._writer.send({"kind": kind, **content})


class _Writer:
    """Start the process that writes for trackio, and a thread that sends it messages: training waits for neither.

    Args:
        folder: The folder of trackio's database.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "visllama.tracking.trackio_writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=writer_environment(folder),
            text=True,
            encoding="utf-8",
        )

        # None is the last message.
        self._messages: queue.SimpleQueue[dict | None] = queue.SimpleQueue()

        # A daemon: a program that ends without `close` does not wait for the thread.
        self._thread = threading.Thread(target=self._hand_over, daemon=True, name="trackio")
        self._thread.start()

    def send(self, message: Mapping[str, object]) -> None:
        """Add a message to those that wait to be sent, and return at once."""
        self._messages.put(dict(message))

    def close(self) -> None:
        """Wait until everything is written, for a minute at most; a process that is not done then is killed."""
        self._messages.put(None)
        self._thread.join(_END_S)

        # The process ends by itself when its input ends, which the thread has closed.
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()

        if code != 0:
            say(f"logger.trackio: its process has ended with code {code}: what it shows of this run is not whole")

    def _hand_over(self) -> None:
        """Send the process one message after another, until None comes."""
        pipe = self._process.stdin
        assert pipe is not None  # as it was started with `stdin=PIPE`

        # A pipe breaks where the process is gone, which `close` reports.
        with suppress(OSError), pipe:
            while (message := self._messages.get()) is not None:
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()


def writer_environment(folder: Path) -> dict[str, str]:
    """Return the environment variables for a process that uses trackio without tokens and without a network.

    They are this process's own variables, without tokens and without those of trackio and of Hugging Face Spaces, plus
    the variables that set trackio's folder and turn off the hub and telemetry.

    Args:
        folder: The folder of trackio's database.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _SECRETS and not name.startswith(("TRACKIO_", "SPACE_"))
    }
    return kept | {
        "TRACKIO_DIR": str(folder.absolute()),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN_PATH": os.devnull,
        "GRADIO_ANALYTICS_ENABLED": "False",
    }


def _encode(image: Image.Image | None) -> dict[str, str] | None:
    """Return a picture as JSON can hold it: its PNG file in base64."""
    if image is None:
        return None

    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "png")
    return {"png": base64.b64encode(buffer.getvalue()).decode()}
