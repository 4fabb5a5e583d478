"""Where pretrained models lie: a folder, the hub, or with the package; and how a file is written whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from visllama.errors import ConfigError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, or of what a user may write there."""


class WriteFailed(ConfigError):
    """A file could not be written; nothing of it is there, and what stood in its place is as it was.

    Args:
        path: The file, or the folder that it was to lie in.
        reason: Why it could not be written, for example "No space left on device".
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.reason})"


SHIPPED = Path(__file__).resolve().parent / "data" / "scenes" / "pretrained"
_SHIPPED_PREFIX = "visllama:"


def locate(path: str, models: Path | str | None = None) -> str:
    """Give what transformers' `from_pretrained` takes.

    Args:
        path: `visllama:NAME` is a backbone of the embedded world; a folder below `models` of that name comes next, then
            any folder, then the hub.
        models: Where downloaded models lie (`paths.models`).

    Raises:
        ConfigError: If it is neither a folder nor the form of a hub id, or holds GGUF alone.
    """
    if path.startswith(_SHIPPED_PREFIX):
        shipped = SHIPPED / path.removeprefix(_SHIPPED_PREFIX)
        if not shipped.is_dir():
            names = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())
            raise ConfigError(f"path={path}: there are {', '.join(_SHIPPED_PREFIX + name for name in names)}")
        return str(shipped)
    for folder in ([Path(models) / path] if models else []) + [Path(path).expanduser()]:
        if path:
            _refuse_gguf(path, folder)
        if path and folder.is_dir():
            return str(folder.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise ConfigError(f"path={path}: no such folder")
    return path


def _refuse_gguf(path: str, found: Path) -> None:
    """Refuse a GGUF file, or a folder that holds a model in no other form, and name the command that converts it.

    Raises:
        ConfigError: With the command.
    """
    files = [found] if found.suffix == ".gguf" and found.is_file() else sorted(found.glob("*.gguf"))
    others = [*found.glob("*.safetensors"), *found.glob("*.bin")]
    if not files or others:
        return
    file = files[0].resolve()
    out = file.with_suffix("")
    # transformers saves no model that it has read from GGUF, so its tensors are put into one that it has not.
    program = (
        f"import transformers as t; f = dict(pretrained_model_name_or_path='{file.parent}', gguf_file='{file.name}'); "
        f"m = t.AutoModelForCausalLM.from_config(t.AutoConfig.from_pretrained(**f)); "
        f"m.load_state_dict(t.AutoModelForCausalLM.from_pretrained(**f).state_dict()); "
        f"[x.save_pretrained('{out}') for x in (m, t.AutoTokenizer.from_pretrained(**f))]"
    )
    raise ConfigError(
        f"path={path}: GGUF is llama.cpp's form of a model, and is not trained on. The model as it was published is "
        f"better, since what GGUF has rounded stays so; else, after pip install gguf, write it out as a folder:  "
        f'python -c "{program}"  and give path={out}'
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there then takes the place of `path`, whole or not at all.

    Others may read the file as far as the umask lets them, whatever mode its writer gives it (safetensors': 0600).

    Raises:
        WriteFailed: If it cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)

        yield temporary

        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # no OSError: it holds the words of one
            raise WriteFailed(path, str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]) from error
        is_of_the_disk = isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EIO)
        if is_of_the_disk or (isinstance(error, OSError) and error.filename == str(temporary)):
            raise WriteFailed(path, error.strerror or str(error)) from error
        raise


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all, whatever ends the program meanwhile.

    Raises:
        WriteFailed: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a file that somebody else may have made: neither a pipe nor an endless device is waited for.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is something else than a file.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name} is no regular file")
    return file


def read_regular(path: Path, most_bytes: int = 2**20) -> str:
    """Read a text file that somebody else may have made: a regular one, of no more than `most_bytes`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is something else, too large, or no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path.name} has more than {most_bytes:,} bytes")
    return content.decode("utf-8")


def flush_folder(folder: Path) -> None:
    """Flush to the disk which names stand in a folder, behind a file that was renamed there."""
    _flush(folder)
