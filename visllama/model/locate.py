"""Where a pretrained model lies: in a folder, on the hub, or with the package."""

from __future__ import annotations

from pathlib import Path

from visllama.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes" / "pretrained"


SHIPPED_PREFIX = "visllama:"


def locate(path: str, models: Path | str | None = None) -> str:
    """Return what transformers' `from_pretrained` takes.

    Args:
        path: `visllama:NAME` is a backbone of the embedded world; a folder below `models` of that name comes next, then
            any folder, then the hub.
        models: Where downloaded models lie (`paths.models`).

    Raises:
        ConfigError: If it is neither a folder nor the form of a hub id, or holds GGUF alone.
    """
    if path.startswith(SHIPPED_PREFIX):
        shipped = SHIPPED / path.removeprefix(SHIPPED_PREFIX)
        if not shipped.is_dir():
            names = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())
            raise ConfigError(f"path={path}: there are {', '.join(SHIPPED_PREFIX + name for name in names)}")
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
