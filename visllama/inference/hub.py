"""Fetch trained weights from the Hugging Face hub: the two files of a repository, at one commit."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.model.pretrained import hub_is_out_of_reach
from visllama.model.weights import DESCRIPTION_FILE, TENSORS_FILE, read_description


def is_repository(name: object) -> TypeGuard[str]:
    """Return whether a value is a text of the form `user/name`, as the hub names repositories; the hub is not asked."""
    if not isinstance(name, str) or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch_weights(repo_id: str, revision: str | None = None) -> Path:
    """Fetch the two files of a repository's trained weights into the cache of huggingface_hub.

    Both files are of one commit. The owner of a repository can change what a branch or a tag names: pin what you load
    by the 40 digits of a commit. Files that were fetched at a commit are found again without a network.

    Args:
        repo_id: The repository, as `user/name`.
        revision: A commit, branch or tag; None means the commit that `main` is at.

    Returns:
        The folder in the cache that holds `visllama.json` and `visllama.safetensors`.

    Raises:
        ConfigError: If the hub is out of reach, the repository or the revision is not there or not for this user, or
            the repository holds no weights of visllama.
    """
    commit = revision if _is_commit(revision) else _find_commit(repo_id, revision)
    folder = _download(repo_id, DESCRIPTION_FILE, commit).parent

    # A description that is wrong is refused before the large file is fetched.
    read_description(folder)
    _download(repo_id, TENSORS_FILE, commit)
    return folder


def _is_commit(revision: object) -> TypeGuard[str]:
    """Return whether a revision is the 40 digits of a commit, which always names the same content."""
    return isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision) is not None


def _find_commit(repo_id: str, revision: str | None) -> str:
    """Return the commit that a branch or a tag is at, which the hub is asked for."""
    if hub_is_out_of_reach():
        raise ConfigError(_out_of_reach(repo_id, "its name is unknown here"))

    with _explained_errors(repo_id, revision):
        commit = HfApi().model_info(repo_id, revision=revision).sha
    if _is_commit(commit):
        return commit
    raise ConfigError(f"weights={repo_id}: the hub names no commit of it; give revision=COMMIT")


def _download(repo_id: str, name: str, commit: str) -> Path:
    """Return the path in the cache of one file of a repository, which is fetched unless it is there."""
    try:
        with _explained_errors(repo_id, commit):
            path = hf_hub_download(repo_id, name, revision=commit, local_files_only=hub_is_out_of_reach())
            return Path(path)
    except LocalEntryNotFoundError as error:
        # There is no network, and the file is not in the cache.
        raise ConfigError(_out_of_reach(repo_id, "and the cache does not hold it")) from error
    except EntryNotFoundError as error:
        raise ConfigError(
            f"weights={repo_id}: holds no {name}: give a repository that holds the weights/ of a run as they are"
        ) from error


@contextmanager
def _explained_errors(repo_id: str, revision: str | None) -> Generator[None, None, None]:
    """Raise the hub's errors as `ConfigError`s that say what to do; errors of a single file are left to the caller."""
    at = "" if revision is None else f" revision={printable(revision)}"
    try:
        yield
    except EntryNotFoundError:
        raise
    except GatedRepoError as error:
        raise ConfigError(
            f"weights={repo_id}: its owner gives it to those who ask: ask on its page, then log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"weights={repo_id}: no such folder here, and no such repository on the hub (a private one needs a log-in: "
            f"hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"weights={repo_id}{at}: the repository has no such commit, branch or tag") from error
    except Exception as error:
        # There are many types: the hub's, and those of its web client, which is another one in other versions.
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ConfigError(_out_of_reach(repo_id, reason)) from error


def _out_of_reach(repo_id: str, reason: str) -> str:
    """Return the message about weights that are neither here nor to be fetched."""
    return (
        f"weights={repo_id}: no such folder here, and the hub is out of reach ({printable(reason)}). Where there is a "
        f"network:  hf download {repo_id} {DESCRIPTION_FILE} {TENSORS_FILE} --local-dir WEIGHTS  and give that folder; "
        f"what was fetched before is found by its revision=COMMIT"
    )
