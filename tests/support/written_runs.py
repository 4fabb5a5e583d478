"""The files of a run that tell how it was started, as a run or somebody else writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml


def write_hydra(folder: Path, *overrides: str, config_dir: str | None = None) -> None:
    """Write a run's `.hydra/hydra.yaml`, with these overrides of Hydra's own."""
    sources = [{"path": "hydra.conf", "provider": "hydra"}]
    sources += [{"path": config_dir, "provider": "command-line"}] if config_dir else []
    content = {
        "runtime": {"config_sources": sources},
        "overrides": {"hydra": ["hydra.run.dir=elsewhere", *overrides]},
    }
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": content}))


def write_command_file(folder: Path, *overrides: str, options: Sequence[str] = (), **more: object) -> None:
    """Write a run's command as somebody might."""
    (folder / "command.yaml").write_text(yaml.safe_dump({"overrides": [*overrides], "options": [*options], **more}))
