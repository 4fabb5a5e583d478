"""Read pretrained models, configs and tokenizers of transformers quietly, without running code beside them."""

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
    """Call `kind.from_pretrained` without log messages and progress bars, and return its result.

    Code that lies beside a model is never run (`trust_remote_code=False`). A hub id that is not in the hub's cache is
    downloaded; if the hub cannot be reached, only the cache is used.

    Args:
        kind: A class with `from_pretrained`, as transformers' models, configs, tokenizers and processors.
        path: A folder or a hub id, as `visllama.model.locate.locate` returns it.
        revision: Commit, branch or tag of the hub id; None for its main branch.
        options: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: If `from_pretrained` raises any error; for a hub id the message holds the command that downloads
            the model.
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
    """Return True if no proxy is set and the hub's host name cannot be resolved; nothing is downloaded.

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
    """Silence transformers' log messages and progress bars inside the `with` block.

    Errors of transformers' logger are still shown, and exceptions pass through. After the block, the log level is as
    before, and progress bars are on, whatever they were.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
