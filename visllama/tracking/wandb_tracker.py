"""Send what a run logs to Weights & Biases (wandb), or keep it in files that can be sent later."""

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
"""The environment variable of the folder in which wandb keeps pictures of tables until they are sent."""
_USERS_DATA = os.environ.get(_DATA)
"""The user's own value, read before a first run of this process sets another."""
_INIT_S = 12.0
"""Seconds that wandb has to begin a run online, after its server was reached."""


class WandbTracker(Tracker):
    """Tracker that logs to wandb; wandb's run begins with the first thing that is logged.

    wandb reads the user's key itself, from the environment variable WANDB_API_KEY or from the file `~/.netrc`.

    Args:
        project: The name of wandb's project that the run belongs to.
        name: The name of the run; None lets wandb choose one.
        group: The name of a group of runs, such as the jobs of a sweep; None is no group.
        tags: Words by which the run can be found.
        save_dir: The folder in which wandb keeps its files, below `wandb/`.
        offline: Whether nothing is sent during the run; `wandb sync` sends it later.
        id: The identity of the run; a resumed run with the same id continues the same run. None lets wandb choose one.
        log_weights: Whether the trained weights are kept as an artifact of wandb.
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

        # Made when something is logged, so that a run that logs nothing has no run of wandb.
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
        """The name of wandb's project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The identity of the run that was asked for; None if wandb chooses one."""
        return self._id

    @property
    def experiment(self) -> wandb.Run:
        """The run of wandb; reading this attribute begins the run if it has not begun."""
        return self._logger().experiment

    def _logger(self) -> WandbLogger:
        """Return Lightning's logger of wandb's run, and begin the run if it has not begun."""
        if self._inner is None:
            run = start_run(self._arguments, self._offline)

            # wandb counts the calls of `log` as steps; ours are those of the optimizer.
            run.define_metric(_STEP)
            run.define_metric("*", step_metric=_STEP, step_sync=True)
            self._inner = WandbLogger(experiment=run, project=self.name, save_dir=self._save_dir)
        return self._inner

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Send a run's configuration (plain values by name); wandb's run begins if it has not begun."""
        self._logger().log_hyperparams(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics of an optimizer step, without those that were sent before the run was stopped.

        Args:
            metrics: Numbers such as losses and learning rates, by name.
            step: The optimizer step; with None, all metrics are sent.
        """
        new = self.without_logged(metrics, step)
        if new:
            self._logger().log_metrics(new, step)

    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Send pictures with their texts as a table `name` of an optimizer step, one row of `PICTURE_COLUMNS` each."""
        import wandb

        rows: list[Iterable[Any]] = []
        for picture in pictures:
            image = None if picture.image is None else wandb.Image(picture.image, caption=picture.text)
            rows.append([picture.source, picture.key, image, picture.prompt, picture.text, picture.reference])

        table = wandb.Table(columns=list(PICTURE_COLUMNS), data=rows)
        self.experiment.log({name: table, _STEP: step})

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        """Send a table `name` of an optimizer step, whose rows have a text or a number for each column."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.experiment.log({name: table, _STEP: step})

    def log_page(self, name: str, path: Path, step: int) -> None:
        """Send an HTML page, which is read from the file `path` and shown as `name` at an optimizer step."""
        import wandb

        page = wandb.Html(str(path), inject=False)
        self.experiment.log({name: page, _STEP: step})

    def log_weights(self, folder: Path) -> None:
        """Send the weights in a folder as an artifact, if the tracker was built with `log_weights`."""
        if not self._keeps_weights:
            return

        import wandb

        # The run's id is part of the name, as the names of a project's artifacts are shared by all of its runs.
        artifact = wandb.Artifact(_artifact_name(self.experiment.id), type="model")
        artifact.add_dir(str(folder))

        self.experiment.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        """End wandb's run if this tracker has begun one; a second call does nothing.

        Args:
            exit_code: The exit code that wandb shows for the run; 0 means that it has ended well.
        """
        if self._inner is not None:
            # Only once: closing it again would end the run that the next job has begun.
            self._inner = None
            finish(exit_code)


def start_run(arguments: Mapping[str, Any], offline: bool) -> wandb.Run:
    """Begin a run of wandb, and return it.

    If `offline` is False, and the server cannot be reached or refuses, one message is printed and the run begins
    offline: its files stay in `DIR/wandb`, and `wandb sync` sends them later. Two environment variables of this process
    are set: WANDB_ERROR_REPORTING, unless it is set, and WANDB_DATA_DIR, unless the user has set it.

    Args:
        arguments: Arguments of `wandb.init`, among them `dir`, the folder of wandb's files.
        offline: Whether the run begins offline at once, without asking the server.
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
    """End the run of wandb that is open in this process; without one, do nothing.

    Args:
        exit_code: The exit code that wandb shows for the run; 0 means that it has ended well.
    """
    import wandb

    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def _without_key(text: str) -> str:
    """Return the first 300 characters of a message in one line, with the user's key replaced by `$WANDB_API_KEY`."""
    line = " ".join(text.split())

    # Before the message is cut: a key at the cut would be printed in part.
    key = os.environ.get(KEY, "")
    if key:
        line = line.replace(key, f"${KEY}")
    return printable(line[:300])


def _artifact_name(run_id: str) -> str:
    """Return the name of the artifact of a run's weights, in which wandb allows letters, digits, `_`, `.` and `-`."""
    return "weights-" + re.sub(r"[^\w.-]+", "-", run_id)
