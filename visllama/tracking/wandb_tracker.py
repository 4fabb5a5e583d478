"""The tracker of Weights & Biases, offline by default; online where its server can be reached."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from visllama.console import printable, say
from visllama.tracking.reachable import find_obstacle
from visllama.tracking.tracker import PICTURE_COLUMNS, Picture, Tracker

if TYPE_CHECKING:
    import wandb

KEY = "WANDB_API_KEY"
"""The environment variable of the user's key."""
_STEP = "trainer/global_step"
"""The figure that Lightning logs the step as; everything is drawn over it."""
_DATA = "WANDB_DATA_DIR"
_USERS_DATA = os.environ.get(_DATA)
"""The user's own value, read before a first run of this process sets another."""
_INIT_S = 12.0
"""Seconds that wandb has to begin a run online, after its server was reached."""


class WandbTracker(Tracker):
    """Send what a run logs to wandb, which reads the user's key itself, from the environment or from netrc.

    Args:
        project: The project that the run belongs to.
        name: The name of the run.
        group: The name that the jobs of a sweep share.
        tags: Words to find the run by.
        save_dir: The folder in which wandb keeps its files.
        offline: Whether nothing is sent during the run; `wandb sync` sends it later.
        id: The identity of the run, by which a resumed one goes on in it.
        log_weights: Whether the trained weights become an artifact.
        entity: The user or team that the project belongs to; None is the user's own default.
        notes: A description of the run.
    """

    def __init__(
        self,
        project: str,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        save_dir: str = ".",
        offline: bool = True,
        id: str | None = None,
        log_weights: bool = False,
        entity: str | None = None,
        notes: str | None = None,
    ) -> None:
        super().__init__()
        self._project = project
        self._id = id
        self._save_dir = save_dir
        self._offline = offline
        self._keeps_weights = log_weights
        self._inner: WandbLogger | None = None

        self._arguments: dict[str, Any] = {
            "project": project,
            "name": name,
            "group": group,
            "tags": list(tags),
            "dir": save_dir,
            "id": id,
            "entity": entity,
            "notes": notes,
        }

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str | None:
        return self._id

    @property
    def experiment(self) -> wandb.Run:
        """The run of wandb, which begins when it is first asked for."""
        return self._logger().experiment

    def _logger(self) -> WandbLogger:
        """Return Lightning's logger of the run, which begins where it has not begun yet."""
        if self._inner is None:
            run = start_run(self._arguments, self._offline)

            # wandb counts the calls of `log` as steps; ours are those of the optimizer.
            run.define_metric(_STEP)
            run.define_metric("*", step_metric=_STEP, step_sync=True)
            self._inner = WandbLogger(experiment=run, project=self.name, save_dir=self._save_dir)
        return self._inner

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._logger().log_hyperparams(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = self.without_logged(metrics, step)
        if new:
            self._logger().log_metrics(new, step)

    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        import wandb

        rows: list[Iterable[Any]] = []
        for picture in pictures:
            image = None if picture.image is None else wandb.Image(picture.image, caption=picture.text)
            rows.append([picture.source, picture.key, image, picture.prompt, picture.text, picture.reference])
        table = wandb.Table(columns=list(PICTURE_COLUMNS), data=rows)
        self.experiment.log({name: table, _STEP: step})

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.experiment.log({name: table, _STEP: step})

    def log_page(self, name: str, path: Path, step: int) -> None:
        import wandb

        page = wandb.Html(str(path), inject=False)
        self.experiment.log({name: page, _STEP: step})

    def log_weights(self, folder: Path) -> None:
        if not self._keeps_weights:
            return

        import wandb

        artifact = wandb.Artifact(_artifact_name(self.experiment.id), type="model")
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        if self._inner is not None:
            # Only once: closing it again would end the run that the next job has begun.
            self._inner = None
            finish(exit_code)


def start_run(arguments: Mapping[str, Any], offline: bool) -> wandb.Run:
    """Begin a run of wandb; where its server cannot be reached or refuses, print one warning and begin it offline.

    Args:
        arguments: Arguments of `wandb.init`.
        offline: Whether nothing is sent at all.
    """
    # Before wandb is imported: it reports its own errors to a server of its maker's, offline too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

    # By default wandb keeps the pictures of tables in the user's home, where `wandb sync` would miss them.
    if _USERS_DATA is None:
        os.environ[_DATA] = str(Path(arguments["dir"], "wandb", "data").absolute())

    # Imported here: it takes a second, and most runs do not need it.
    import wandb

    if not offline:
        obstacle = find_obstacle(wandb.setup().settings.base_url)
        if obstacle is None:
            try:
                # Silent: where it fails, what it prints is coloured in a file too.
                settings = wandb.Settings(init_timeout=_INIT_S, silent=True)
                run = wandb.init(**arguments, mode="online", resume="allow", settings=settings)
                say(f"wandb: {run.url}")
                return run
            except (wandb.Error, OSError) as error:
                obstacle = _without_key(str(error) or type(error).__name__)
                # Its service still holds the identity of the run that could not begin.
                wandb.teardown()
        say(
            f"logger.wandb.offline=false: wandb cannot be used now ({obstacle}): the run is kept offline in "
            f"{arguments['dir']}/wandb, and `wandb sync` sends it later"
        )

    # Without `resume`, which means nothing offline: there the parts of one run share its id.
    return wandb.init(**arguments, mode="offline")


def finish(exit_code: int) -> None:
    """End the run of wandb that this process has; without it the next job of a sweep would write into the same run.

    Args:
        exit_code: The code that wandb shows for the run; 0 where it has ended well.
    """
    import wandb

    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def _without_key(text: str) -> str:
    """Return a message in one line of 300 characters at most, with the user's key taken out."""
    line = " ".join(text.split())[:300]
    key = os.environ.get(KEY, "")
    if key:
        line = line.replace(key, f"${KEY}")
    return printable(line)


def _artifact_name(run_id: str) -> str:
    """Return a name that wandb allows for an artifact."""
    return "weights-" + re.sub(r"[^\w.-]+", "-", run_id)
