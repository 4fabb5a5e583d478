"""Upload of a folder to the Hugging Face hub: what would go is listed, and nothing else than data goes."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import open_regular
from visllama.inference.hub import is_repository

TOKEN = "HF_TOKEN"
_SUFFIXES = (".safetensors", ".json", ".md", ".yaml", ".png", ".jinja", ".txt", ".model")


def list_upload(folder: Path) -> list[tuple[str, int]]:
    """Return the files that an upload would send, by their names in the repository, each with its bytes.

    Raises:
        ConfigError: If the folder is none, is empty, or holds what is no data of a model: pickles, code, links.
    """
    folder = Path(folder)
    found, refused = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            refused.append(f"{name} (a link)")
        elif path.is_dir():
            continue
        elif not path.name.endswith(_SUFFIXES):
            refused.append(name)
        else:
            found.append((name, _size(path)))
    if refused:
        raise ConfigError(
            f"{printable(folder)}: not uploaded, it holds {printable(', '.join(refused[:5]))}: only "
            f"{' '.join(_SUFFIXES)} files go to the hub; move the others elsewhere"
        )
    if not found:
        raise ConfigError(f"{printable(folder)}: there is nothing to upload: give the folder that was exported")
    return found


def _size(path: Path) -> int:
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"{printable(path)}: cannot be read ({error})") from error


def read_token(repo_id: str) -> str:
    """Return the token of the environment variable HF_TOKEN.

    Args:
        repo_id: The repository that is to be written, as `user/name`.

    Raises:
        ConfigError: If there is no token, or that is no repository's name.
    """
    if not is_repository(repo_id):
        raise ConfigError(f"push={printable(repo_id)}: a repository on the hub is user/name, or organisation/name")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(
            f"push={repo_id}: the environment variable {TOKEN} is not set: make a token that may write to {repo_id} "
            f"(huggingface.co/settings/tokens), and  export {TOKEN}=...  Nothing was uploaded"
        )
    return token


def push(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload a folder's files as one commit, into a repository that is made where there is none.

    The token is that of the environment variable HF_TOKEN; one that `hf auth login` has saved is not read.

    Args:
        folder: What to upload; see `list_upload`.
        repo_id: The repository, as `user/name`.
        private: Whether a repository that is made is private; one that is there stays as it is.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: If a file is refused, the token is missing or has no leave, or the hub is out of reach.
    """
    token = read_token(repo_id)
    names = [glob.escape(name) for name, _ in list_upload(folder)]
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message="Upload by visllama"
        )
    except Exception as error:  # of many types: the hub's, and those of the web client, which differs by its version
        raise ConfigError(f"push={repo_id}: not uploaded: {_reason(error, token)}") from None
    return commit.commit_url


def _reason(error: Exception, token: str) -> str:
    """Return what went wrong, in a line that does not hold the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return f"the hub refuses the token of {TOKEN} ({status}): it needs leave to write there"
    told = " ".join(str(error).split())[:500] or type(error).__name__
    return printable(told.replace(token, f"${TOKEN}"))
