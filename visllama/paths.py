"""Where pretrained models lie: a folder, the hub, or with the package; and how a small file is written."""

from __future__ import annotations

import os
from pathlib import Path

from visllama.config import ConfigError

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
    arguments = f"'{file.parent}', gguf_file='{file.name}'"
    raise ConfigError(
        f"path={path}: GGUF is llama.cpp's form of a model, and is not trained on. transformers writes it out as a "
        f'folder (pip install gguf):  python -c "import transformers as t; [kind.from_pretrained({arguments})'
        f".save_pretrained('{out}') for kind in (t.AutoModelForCausalLM, t.AutoTokenizer)]\"  and give path={out}. "
        f"Numbers that GGUF has rounded stay rounded: the model as it was published is better"
    )


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all, whatever ends the program meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush_folder(folder: Path) -> None:
    """Flush to the disk which names stand in a folder, behind a file that was renamed there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
