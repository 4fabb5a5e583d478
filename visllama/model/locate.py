"""Find a pretrained model by the path of a config: in a folder, on the hub, or among the files of visllama."""

from __future__ import annotations

from pathlib import Path

from visllama.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes" / "pretrained"
SHIPPED_PREFIX = "visllama:"


def locate(path: str, models: Path | str | None = None) -> str:
    """Return the full path of a model's folder, or a hub id, for transformers' `from_pretrained`.

    Only folders on this machine are looked at, never the hub: a hub id need not exist.

    Args:
        path: `visllama:NAME` for a small model that comes with visllama. Anything else is looked for in this order: as
            a folder below `models`; as a folder by itself; else it counts as a hub id (NAME or OWNER/NAME) and is
            returned unchanged.
        models: The folder of downloaded models (`paths.models`); None for none.

    Raises:
        ConfigError: If the path is empty, if it is no folder and has not the form of a hub id, if visllama has no model
            of that NAME, or if the path is a GGUF file or a folder whose only weights are GGUF files.
    """
    if path.startswith(SHIPPED_PREFIX):
        return _locate_shipped(path)

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
    is_local = path.startswith((".", "/", "~"))
    if is_local or path.count("/") > 1:
        raise ConfigError(f"path={path}: no such folder")
    return path


def _locate_shipped(path: str) -> str:
    """Return the full path of a small model that comes with visllama, named as `visllama:NAME`.

    Raises:
        ConfigError: If there is no such model; the message lists those that there are.
    """
    name = path.removeprefix(SHIPPED_PREFIX)
    folder = SHIPPED / name
    if folder.is_dir():
        return str(folder)

    shipped = []
    for other in sorted(SHIPPED.iterdir()):
        if other.is_dir():
            shipped.append(SHIPPED_PREFIX + other.name)
    choices = ", ".join(shipped)
    raise ConfigError(f"path={path}: there are {choices}")


def _refuse_gguf(path: str, location: Path) -> None:
    """Refuse a GGUF file, or a folder that holds a model as GGUF alone.

    Args:
        path: The path of the config, for the message.
        location: The file or folder, which need not exist.

    Raises:
        ConfigError: If it is one; the message holds a command that converts it.
    """
    is_gguf = location.suffix == ".gguf" and location.is_file()
    gguf_files = [location] if is_gguf else sorted(location.glob("*.gguf"))
    other_files = [*location.glob("*.safetensors"), *location.glob("*.bin")]
    if not gguf_files or other_files:
        return

    file = gguf_files[0].resolve()
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
