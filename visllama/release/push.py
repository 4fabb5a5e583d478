"""Upload a folder to the Hugging Face hub: the files are listed first, and only a model's data is sent."""

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
"""The environment variable of the user's token."""
_SUFFIXES = (".safetensors", ".json", ".md", ".yaml", ".png", ".jinja", ".txt", ".model")
"""The ends of the names of files that may be uploaded: tensors, settings, texts, pictures; neither pickles nor code."""


def list_upload(folder: Path) -> list[tuple[str, int]]:
    """Return the files that `push` would send, as pairs of the path inside the folder and the size in bytes.

    The pairs are sorted by path, and include the files of inner folders. Nothing is sent.

    Args:
        folder: The folder to upload.

    Raises:
        ConfigError: If the folder does not exist or has no files, holds a link or a file that cannot be read, or holds
            a file whose name does not end with .safetensors, .json, .md, .yaml, .png, .jinja, .txt or .model.
    """
    folder = Path(folder)
    files = []
    refused = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            # A link could name a file of the user's that is no part of the model.
            refused.append(f"{name} (a link)")
        elif path.is_dir():
            continue
        elif not path.name.endswith(_SUFFIXES):
            refused.append(name)
        else:
            files.append((name, _size(path)))

    if refused:
        names = printable(", ".join(refused[:5]))
        suffixes = " ".join(_SUFFIXES)
        raise ConfigError(
            f"{printable(folder)}: not uploaded, it holds {names}: only {suffixes} files go to the hub; "
            f"move the others elsewhere"
        )
    if not files:
        raise ConfigError(f"{printable(folder)}: there is nothing to upload: give the folder that was exported")
    return files


def _size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        ConfigError: If it is no regular file, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"{printable(path)}: cannot be read ({error})") from error


def read_token(repo_id: str) -> str:
    """Return the user's token for the hub from the environment variable HF_TOKEN, after checking a repository's name.

    The hub is not asked whether the token is valid.

    Args:
        repo_id: The repository that will be written to, as `user/name`, for the check and the error messages.

    Raises:
        ConfigError: If `repo_id` does not have the form `user/name`, or the variable is not set or empty.
    """
    if not is_repository(repo_id):
        raise ConfigError(f"push={printable(repo_id)}: a repository on the hub is user/name, or organisation/name")

    token = os.environ.get(TOKEN, "")
    token = token.strip()
    if not token:
        raise ConfigError(
            f"push={repo_id}: the environment variable {TOKEN} is not set: make a token that may write to {repo_id} "
            f"(huggingface.co/settings/tokens), and  export {TOKEN}=...  Nothing was uploaded"
        )
    return token


def push(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload all files of a folder to the Hugging Face hub as one commit, and return the web address of the commit.

    A repository that does not exist is created. The token is read from the environment variable HF_TOKEN; one that
    `hf auth login` has saved is not used.

    Args:
        folder: The folder to upload, which holds only the files of a model (`list_upload` lists and checks them).
        repo_id: The repository, as `user/name`.
        private: Whether a repository that is created is private; an existing one stays as it is.

    Raises:
        ConfigError: If `repo_id` does not have the form `user/name`, the folder is empty or holds a file that may not
            be sent, the token is missing or may not write to the repository, or the hub cannot be reached or refuses.
    """
    token = read_token(repo_id)

    # Listed, and not "everything": a file that appears meanwhile does not go.
    patterns = [glob.escape(name) for name, _ in list_upload(folder)]

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=patterns,
            commit_message="Upload by visllama",
        )
    except Exception as error:
        # Errors of many types: the hub's, and those of the web client, which differs by its version. Their cause is
        # cut off, as its text may hold the token.
        raise ConfigError(f"push={repo_id}: not uploaded: {_reason(error, token)}") from None
    return commit.commit_url


def _reason(error: Exception, token: str) -> str:
    """Return the reason of a failed upload in one line of about 500 characters at most, with the token taken out."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = None if response is None else response.status_code
    if status in (401, 403):
        return f"the hub refuses the token of {TOKEN} ({status}): it needs permission to write there"

    # The token goes before the message is cut: at the cut it would be printed in part.
    words = str(error).split()
    line = " ".join(words)
    line = line.replace(token, f"${TOKEN}")

    # Some errors have no text: those are named by their class.
    kind = type(error).__name__
    message = line[:500] or kind
    return printable(message)
