"""`resume=RUN`: the command line that goes on with a run, from what was written down of the one that began it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

from visllama.config import ConfigError, config_dir_options, override
from visllama.paths import write_whole

_UNDER = "hydra.run.dir"
COMMAND = "command.yaml"


def replay(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that `resume=` names before what was typed, which wins; without it, change nothing.

    Raises:
        ConfigError: If it names no run's folder.
    """
    named = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return list(arguments)
    run = Path(named[-1].strip("'\"")).expanduser()
    began, options = _read(run)
    if "-m" in arguments or "--multirun" in arguments:
        raise ConfigError(f"resume={run} goes on with one run: leave out -m, and resume the jobs of a sweep one by one")
    typed = {_key(word) for word in arguments}
    places = [word.partition("=")[2].strip("'") for word in arguments if _key(word) == _UNDER]
    if any(Path(place).resolve() != run.resolve() for place in places):  # another rank of the run is given its folder
        raise ConfigError(f"resume={run} goes on in that folder: leave out {_UNDER}")
    if "--config-dir" in arguments or "-cd" in arguments:
        options = [word for word in options if _key(word) == "hydra.searchpath"]
    kept = [word for word in [*options, *began] if _key(word) not in typed - {"--config-dir"} | {"resume"}]
    return [*kept, *([] if places else [override(_UNDER, run)]), *arguments]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _read(run: Path) -> tuple[list[str], list[str]]:
    """Give a run's overrides, and the options that name the user's config folders."""
    try:
        if (run / COMMAND).is_file():
            written = yaml.safe_load((run / COMMAND).read_text(encoding="utf-8"))
            return written["overrides"], written["options"]
        began = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        hydra = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))["hydra"]
        folders = [s["path"] for s in hydra["runtime"]["config_sources"] if s["provider"] == "command-line"]
        searched = [word for word in hydra["overrides"]["hydra"] if word.startswith("hydra.searchpath=")]
        return [*began], [*(word for folder in folders for word in ("--config-dir", folder)), *searched]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"resume={run}: no folder of a run ({error}): give the one that holds its .hydra/") from error


def write_command(run: Path) -> None:
    """Write down the running job's command line, whole or not at all: Hydra's own files are not, when it is killed."""
    written = {"overrides": list(HydraConfig.get().overrides.task), "options": config_dir_options()}
    write_whole(run / COMMAND, yaml.safe_dump(written))
