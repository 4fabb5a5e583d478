"""Where a pretrained model lies: in a folder, on the hub, or with the package."""

from __future__ import annotations

from pathlib import Path

from visllama.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes" / "pretrained"
SHIPPED_PREFIX = "visllama:"


def locate(path: str, models: Path | str | None = None) -> str:
    """Return the folder or the hub id that transformers' `from_pretrained` takes.

    Args:
        path: `visllama:NAME` for a backbone of the embedded world; else the name of a folder below `models`, any
            folder, or a hub id, looked for in this order.
        models: The folder of downloaded models (`paths.models`).

    Raises:
        ConfigError: If the path is neither a folder nor of the form of a hub id, or if it holds GGUF files alone.
    """
    if path.startswith(SHIPPED_PREFIX):
        shipped = SHIPPED / path.removeprefix(SHIPPED_PREFIX)
        if not shipped.is_dir():
            names = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())
            choices = ", ".join(SHIPPED_PREFIX + name for name in names)
            raise ConfigError(f"path={path}: there are {choices}")
        return str(shipped)

    # An empty path would be the current folder, which nobody means by it.
    if not path:
        raise ConfigError(f"path={path}: no such folder")

    folders = [Path(path).expanduser()]
    if models:
        folders.insert(0, Path(models) / path)
    for folder in folders:
        _refuse_gguf(path, folder)
        if folder.is_dir():
            return str(folder.resolve())

    # A hub id is NAME or OWNER/NAME.
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"path={path}: no such folder")
    return path


def _refuse_gguf(path: str, location: Path) -> None:
    """Refuse a GGUF file, or a folder that holds a model in no other form, and name the command that converts it.

    Raises:
        ConfigError: If it is one; the message holds the command.
    """
    is_gguf = location.suffix == ".gguf" and location.is_file()
    files = [location] if is_gguf else sorted(location.glob("*.gguf"))
    others = [*location.glob("*.safetensors"), *location.glob("*.bin")]
    if not files or others:
        return

    file = files[0].resolve()
    out = file.with_suffix("")
    # transformers refuses to save a model that it has read from GGUF. The command therefore builds the model from its
    # config and copies the tensors into it.
    program = (
        f"import transformers as t; f = dict(pretrained_model_name_or_path='{file.parent}', gguf_file='{file.name}'); "
        f"m = t.AutoModelForCausalLM.from_config(t.AutoConfig.from_pretrained(**f)); "
        f"m.load_state_dict(t.AutoModelForCausalLM.from_pretrained(**f).state_dict()); "
        f"[x.save_pretrained('{out}') for x in (m, t.AutoTokenizer.from_pretrained(**f))]"
    )
    raise ConfigError(
        f"path={path}: GGUF is llama.cpp's form of a model, and is not trained on. The model as it was published is "
        f"better, since what GGUF has rounded stays rounded; else, after pip install gguf, write it out as a folder:  "
        f'python -c "{program}"  and give path={out}'
    )
