"""`resume=RUN`: the command line that goes on with a run, from what Hydra wrote down of the one that began it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from visllama.config import ConfigError, override

_UNDER = "hydra.run.dir"


def replay(arguments: Sequence[str]) -> list[str]:
    """Put the overrides of the run that `resume=` names before what was typed, which wins; without it, change nothing.

    Raises:
        ConfigError: If it names no run's folder.
    """
    named = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return list(arguments)
    run = Path(named[-1].strip("'\"")).expanduser()
    try:
        began = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        hydra = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))["hydra"]
        folders = [s["path"] for s in hydra["runtime"]["config_sources"] if s["provider"] == "command-line"]
        options = [word for word in hydra["overrides"]["hydra"] if word.startswith("hydra.searchpath=")]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"resume={run}: no folder of a run ({error}): give the one that holds its .hydra/") from error
    if not isinstance(began, list):
        raise ConfigError(
            f"resume={run}: .hydra/overrides.yaml there is not whole: give its overrides again, without resume"
        )
    if "-m" in arguments or "--multirun" in arguments:
        raise ConfigError(f"resume={run} goes on with one run: leave out -m, and resume the jobs of a sweep one by one")
    typed = {_key(word) for word in arguments}
    if _UNDER in typed:
        raise ConfigError(f"resume={run} goes on in that folder: leave out {_UNDER}")
    kept = [word for word in [*options, *began] if _key(word) not in typed | {"resume"}]
    kept.append(override(_UNDER, run))
    searched = [] if "--config-dir" in arguments or "-cd" in arguments else folders
    return [*(word for folder in searched for word in ("--config-dir", folder)), *kept, *arguments]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
