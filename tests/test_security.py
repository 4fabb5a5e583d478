"""Nothing out of a file runs: weights folders, base models, shards and checkpoints made to do harm, and a static look."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import save_encoder, save_language_model
from tests.tiny import TEXT, tiny_parts
from visllama.config import ConfigError
from visllama.model.weights import load_weights, save_weights

PACKAGE = Path(__file__).parent.parent / "visllama"


@pytest.fixture
def canary(tmp_path):
    """A file that any of the payloads would make."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "the payload ran"


class Payload:
    """What pickle would run on loading."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def folder(make_model, tmp_path):
    """Good weights of a small LLaMA and CLIP that lie under `models`."""
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / "weights")
    return tmp_path / "weights"


def edit(folder: Path, change) -> None:
    path = folder / "visllama.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def touching(canary: Path) -> dict:
    return {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(canary)]}}


@pytest.mark.parametrize(
    "change",
    [
        lambda d, c: d["parts"]["connector"]["arguments"].update(hidden_dim=touching(c)),
        lambda d, c: d["parts"]["connector"].update(touching(c)),
        lambda d, c: d["parts"]["connector"].update(kind={"_target_": "os.system"}),
        lambda d, c: d["parts"]["connector"].update(kind="os.system", arguments={"command": f"touch {c}"}),
        lambda d, c: d["parts"]["language_model"].update(
            kind="subprocess.Popen", arguments={"args": ["touch", str(c)]}
        ),
        lambda d, c: d["parts"]["vision_encoder"].update(kind="ABC", arguments={}),
        lambda d, c: d["parts"]["language_model"]["arguments"].update(trust_remote_code=True),
        lambda d, c: d["parts"].update(connector=[touching(c)]),
        lambda d, c: d.update(parts={}),
    ],
    ids=[
        "target-argument",
        "target-part",
        "kind-is-target",
        "os.system",
        "Popen",
        "imported-name",
        "trust",
        "list",
        "no-parts",
    ],
)
def test_a_description_made_to_run_something_is_refused(folder, canary, change):
    edit(folder, lambda description: change(description, canary))
    with pytest.raises(ConfigError):
        load_weights(folder)


def test_plugins_written_into_weights_open_nothing(folder, canary, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(canary)!r}).touch()")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(folder, lambda d: d.update(plugins=["evil"]) or d["parts"]["connector"].update(kind="Evil", plugins=["evil"]))
    with pytest.raises(ConfigError, match=r"unknown connector 'Evil'.* plugins=\[PACKAGE\]"):
        load_weights(folder)


@pytest.mark.parametrize("content", ["pickle", "torch.save", "text"])
def test_tensors_that_are_no_safetensors_are_refused(folder, canary, content):
    path = folder / "visllama.safetensors"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Payload(canary)))
    elif content == "torch.save":
        torch.save(Payload(canary), path)
    else:
        path.write_text("words")
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(folder)


def test_a_checkpoint_in_place_of_weights_is_refused(canary, tmp_path):
    torch.save({"state_dict": Payload(canary)}, tmp_path / "step_00000006.ckpt")
    with pytest.raises(ConfigError, match="give the weights/ folder that a run wrote"):
        load_weights(tmp_path / "step_00000006.ckpt")
    with pytest.raises(ConfigError, match="give the weights/ folder"):
        load_weights(tmp_path)


_CODE = "from pathlib import Path\nPath({canary!r}).touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("part", ["language_model", "vision_encoder"])
@pytest.mark.parametrize("attack", ["auto_map-known", "auto_map-unknown", "tokenizer", "pickle", "pickled-torch"])
def test_a_base_model_made_to_run_something(folder, canary, tmp_path, part, attack):
    """Code that lies beside a base model never runs: the model loads without it, or is refused."""
    base = tmp_path / "base"
    (save_language_model if part == "language_model" else save_encoder)(
        "llama" if part == "language_model" else "clip", base
    )
    (base / "evil.py").write_text(_CODE.format(canary=str(canary)))
    config = json.loads((base / "config.json").read_text())
    if attack.startswith("auto_map"):
        names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor")
        config["auto_map"] = dict.fromkeys(names, "evil.Evil")
        if attack == "auto_map-unknown":
            config["model_type"] = "evil"
    elif attack == "tokenizer":
        name = "tokenizer_config.json" if part == "language_model" else "preprocessor_config.json"
        own = json.loads((base / name).read_text())
        own |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoImageProcessor": "evil.Evil"}}
        (base / name).write_text(json.dumps(own))
    else:
        (base / "model.safetensors").unlink()
        if attack == "pickle":
            (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
        else:
            torch.save({"weight": Payload(canary)}, base / "pytorch_model.bin")
    (base / "config.json").write_text(json.dumps(config))
    edit(folder, lambda d: d["parts"][part]["arguments"].update(path=str(base)))
    with pytest.raises(ConfigError):  # at the latest for its hash: it is not what was trained with
        load_weights(folder)


def test_a_tensor_of_another_model_hidden_among_ours_is_refused(folder):
    tensors = load_file(folder / "visllama.safetensors")
    save_file(tensors | {"language_model.lm_head.weight": torch.zeros(480, 128)}, folder / "visllama.safetensors")
    with pytest.raises(ConfigError, match=r"unknown language_model\.lm_head\.weight"):
        load_weights(folder)


def test_links_out_of_the_folder_are_only_read(folder, tmp_path):
    """A link to a file that is no weights is refused like any other file."""
    shutil.move(folder / "visllama.safetensors", tmp_path / "elsewhere")
    (tmp_path / "secret").write_text("words")
    (folder / "visllama.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(folder)


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_dangerous_call_stands_in_the_package(path):
    tree = ast.parse(path.read_text())
    for name, keywords in calls(tree):
        assert name not in ("eval", "exec", "compile", "__import__", "os.system"), name
        assert not name.endswith((".extractall", "pickle.load", "pickle.loads")), name
        assert keywords.get("shell", "False") == "False" and keywords.get("trust_remote_code", "False") == "False"
        assert name != "torch.load" or keywords.get("weights_only") == "True"
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}
