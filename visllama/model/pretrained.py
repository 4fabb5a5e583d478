"""Read a pretrained model quietly, without ever running code that lies beside it."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub.constants import ENDPOINT
from transformers.utils import logging

from visllama.errors import ConfigError


def read(kind: Any, path: str, revision: str | None = None, **options: Any) -> Any:
    """Return what `kind.from_pretrained` reads, quietly, and never run code that lies beside a model.

    Args:
        kind: A class of transformers.
        path: A folder or a hub id, as `visllama.model.locate` returns it.
        revision: Commit of the hub id.
        options: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: If the model cannot be read; for a hub id the message holds the command that downloads it.
    """
    if not Path(path).is_dir() and hub_is_out_of_reach():
        options["local_files_only"] = True

    try:
        with quietly():
            return kind.from_pretrained(path, revision=revision, trust_remote_code=False, **options)
    # The error may be of transformers, the hub, safetensors, tokenizers or torch.
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if Path(path).is_dir():
            raise ConfigError(f"path={path}: not to be read as {kind.__name__}: {reason}") from error

        command = f"hf download {path}"
        if revision:
            command += f" --revision {revision}"
        raise ConfigError(
            f"path={path}: neither a folder (also not under paths.models) nor to be had from the hub ({reason}). "
            f"Where there is a network:  {command} --local-dir MODELS/{path}  and give paths.models=MODELS"
        ) from error


def hub_is_out_of_reach() -> bool:
    """Return whether there is no proxy and the name of the hub's machine cannot be resolved.

    The hub's own client takes half a minute to find that out.
    """
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


@contextmanager
def quietly() -> Generator[None, None, None]:
    """Keep transformers' loading reports and progress bars off the terminal; errors are raised as ever."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
