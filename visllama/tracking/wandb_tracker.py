"""The tracker of Weights & Biases: offline, or online where the network lets it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
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
_STEP = "trainer/global_step"
_DATA = "WANDB_DATA_DIR"
_USERS_DATA = os.environ.get(_DATA)
_INIT_S = 12.0
"""Seconds that wandb has to begin a run online, after its server was reached."""


class WandbTracker(Tracker):
    """Send wandb what a run logs. The key is read by wandb itself, from the environment or from netrc.

    Args:
        project: The project that the run belongs to.
        name: The name of the run.
        group: The name that the jobs of a sweep share.
        tags: Words to find the run by.
        save_dir: The folder of what wandb keeps on this machine.
        offline: Whether nothing is sent; `wandb sync` does it later.
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
        self._arguments = {
            "project": project,
            "name": name,
            "group": group,
            "tags": list(tags),
            "dir": save_dir,
            "id": id,
            "entity": entity,
            "notes": notes,
        }
        self._offline, self._keeps_weights = offline, log_weights
        self._inner: WandbLogger | None = None

    @property
    def name(self) -> str:
        return self._arguments["project"]

    @property
    def version(self) -> str | None:
        return self._arguments["id"]

    @property
    def experiment(self) -> wandb.Run:
        """The run of wandb, which begins when it is first asked for."""
        return self._logger().experiment

    def _logger(self) -> WandbLogger:
        if self._inner is None:
            run = start_run(self._arguments, self._offline)
            run.define_metric(_STEP)
            run.define_metric("*", step_metric=_STEP, step_sync=True)
            self._inner = WandbLogger(experiment=run, project=self.name, save_dir=self._arguments["dir"])
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

        rows = []
        for picture in pictures:
            image = picture.image
            shown = None if image is None else wandb.Image(image, caption=picture.text)
            rows.append(list(picture._replace(image=shown)))
        table = wandb.Table(columns=list(PICTURE_COLUMNS), data=rows)
        self.experiment.log({name: table, _STEP: step})

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.experiment.log({name: table, _STEP: step})

    def log_page(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.experiment.log({name: wandb.Html(str(path), inject=False), _STEP: step})

    def log_weights(self, folder: Path) -> None:
        if not self._keeps_weights:
            return

        import wandb

        artifact = wandb.Artifact(_artifact_name(self.experiment.id), type="model")
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        if self._inner is not None:
            self._inner = None
            finish(exit_code)


def start_run(arguments: Mapping[str, Any], offline: bool) -> wandb.Run:
    """Begin a run of wandb; offline, after one warning, where its server cannot be reached or refuses.

    Args:
        arguments: Arguments of `wandb.init`.
        offline: Whether nothing is sent at all.
    """
    # Before wandb is imported: it reports its own errors to a server of its maker's, offline too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if _USERS_DATA is None:  # wandb keeps the pictures of tables in the user's home, where `wandb sync` would miss them
        os.environ[_DATA] = str(Path(arguments["dir"], "wandb", "data").absolute())
    import wandb  # here: it takes a second, and most runs do not need it

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
                wandb.teardown()  # its service holds the identity of the run that could not begin
        say(
            f"logger.wandb.offline=false: wandb cannot be used now ({obstacle}): the run is kept offline in "
            f"{arguments['dir']}/wandb, and `wandb sync` sends it later"
        )
    return wandb.init(**arguments, mode="offline")  # where parts of one run have one id, and `resume` means nothing


def finish(exit_code: int) -> None:
    """End the run of wandb that this process has: the next job of a sweep would write into the same one."""
    import wandb

    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def _without_key(text: str) -> str:
    """Return a message in one line that does not hold the key."""
    key = os.environ.get(KEY, "")
    line = " ".join(text.split())[:300]
    return printable(line.replace(key, f"${KEY}") if key else line)


def _artifact_name(run_id: str) -> str:
    """Return a name that wandb allows for an artifact."""
    return "weights-" + re.sub(r"[^\w.-]+", "-", run_id)
