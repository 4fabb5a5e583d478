"""Nothing out of a file runs: weights folders, base models, shards and checkpoints made to do harm, and a static look."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file

from tests.support.families import save_encoder, save_language_model
from tests.support.tiny import TEXT, tiny_parts
from visllama.checkpoint.folder import find_damage, read_loader_state
from visllama.config.replay import read_config, replay
from visllama.data.shards.manifest import Manifest
from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_predictions, read_references
from visllama.evaluation.captions import score_captions
from visllama.evaluation.vqa import read_answers
from visllama.model.weights import load_weights, save_weights
from visllama.tracking.metrics_csv import keep_metrics

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


NONSENSE = {
    "nested": b"[" * 30_000,
    "nested keys": b'{"a":' * 30_000,
    "no text": b"\xff\x00",
    "a number of 5,000 digits": b"9" * 5000,
    "null": b"null",
    "nothing": b"",
}


@pytest.fixture(params=[*NONSENSE, "pipe", "folder", "device"])
def nonsense(request, tmp_path):
    """Make of a path something that is not what it should be."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)  # nobody writes to it: who reads it waits for ever
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(NONSENSE[request.param])

    return make


def test_weights_described_by_nonsense_are_refused(folder, nonsense):
    nonsense(folder / "visllama.json")
    with pytest.raises(ConfigError, match=r"visllama\.json"):
        load_weights(folder)


def test_tensors_of_nonsense_are_refused(folder, nonsense):
    nonsense(folder / "visllama.safetensors")
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["parts"]["connector"].pop("kind"), "does not name the kind of the connector"),
        (lambda d: d.update(trained=[5]), r"trained=\[5\]: a model's parts are"),
        (lambda d: d.update(trained=["conector"]), "trained=.*conector"),
        (lambda d: d["text"].update(max_text_tokens=-5), "max_text_tokens=-5: must be 1 or more"),
    ],
)
def test_a_description_that_no_run_wrote_is_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(ConfigError, match=message):
        load_weights(folder)


@pytest.mark.parametrize("read", [read_predictions, read_references, read_answers])
def test_predictions_and_references_of_nonsense_are_refused(tmp_path, nonsense, read):
    nonsense(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"a\.json"):
        read(tmp_path / "a.json")


def test_texts_that_nothing_can_score_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(r'{"1": "a \ud800 dog"}')  # half a character: METEOR's Java could not be told of it
    with pytest.raises(ConfigError, match=r"a\.json: no valid JSON: .*surrogates"):
        read_predictions(path)
    path.write_text('{"annotations": [{"image_id": 1, "caption": null}]}')
    with pytest.raises(ConfigError, match="an annotation without image_id and caption"):
        read_references(path)
    with pytest.raises(ConfigError, match="1 images have no reference with a word in it, first 1"):
        score_captions({"1": "a dog", "2": "a"}, {"1": [" "], "2": ["a"]})


@pytest.mark.parametrize("content", ['{"version": 1, "files": {"rest.pt": {"bytes": Infinity, "sha256": "a"}}}', None])
def test_a_checkpoint_that_is_described_by_nonsense_is_passed_over(tmp_path, nonsense, content):
    if content is None:
        nonsense(tmp_path / "COMPLETE")
    else:
        (tmp_path / "COMPLETE").write_text(content)
    assert find_damage(tmp_path) is not None


@pytest.mark.parametrize("content", [b"", b"words", {"a": 1}, [1], {"loops": {"fit_loop": None}}], ids=range(5))
def test_a_checkpoint_of_nonsense_is_refused(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "rest.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "rest.pt")
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):
        read_loader_state(tmp_path)


def shards(**columns: object) -> str:
    described = {"name": ["a"], "bytes": [1], "num_records": [1], "num_pairs": [1], "crc": [1]} | columns
    return json.dumps({"index_version": 1, "shards": described, "kinds": {}, "faults": {}})


@pytest.mark.parametrize(
    "content",
    [*NONSENSE.values(), shards(bytes=[float("inf")]), shards(bytes=[10**30]), shards(name=[5])],
    ids=range(9),
)
def test_a_manifest_of_nonsense_is_refused(content):
    with pytest.raises(ConfigError, match="no manifest of shards"):
        Manifest.parse("folder", content)


@pytest.fixture
def run(tmp_path):
    """A run of somebody's, with plain words alone."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "command.yaml").write_text("{overrides: [seed=3], options: []}")
    return tmp_path / "run"


def test_a_config_of_nonsense_is_refused(run, nonsense):
    nonsense(run / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: no config of a run"):
        read_config(run / "config.yaml")


@pytest.mark.parametrize("content", ["a: &a [1]\nb: [*a, *a]", "!!python/name:os.system", "- 1", "a: ${b", "\t"])
def test_a_config_that_no_run_wrote_is_refused(run, content):
    (run / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml: no config of a run"):
        read_config(run / "config.yaml")


@pytest.mark.parametrize("name", ["log.txt", "stacks/rank_0000.txt", "checkpoints/step_00000002", "wandb"])
def test_a_link_in_somebody_elses_run_is_not_written_through(run, tmp_path, name):
    """`log.txt -> ~/.bashrc` would have what is logged appended there; a pipe would be waited for."""
    assert replay([f"resume={run}"])[0] == "seed=3"
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"run/{name} is a link, or no regular file"):
        replay([f"resume={run}"])
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(ConfigError, match=rf"run/{name} is a link, or no regular file"):
        replay([f"resume={run}"])


def test_metrics_that_no_run_wrote_keep_no_run_from_going_on(tmp_path):
    rows = ["step,train/loss", "1,2.5", "9" * 5000 + ",2", "²,1", "2," + "x" * 200_000, "3,1"]
    (tmp_path / "metrics.csv").write_bytes("\n".join(rows).encode() + b"\n\xff,\x00")
    keep_metrics(CSVLogger(tmp_path, name="", version=""), tmp_path, before_step=10)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss", "1,2.5"]


def test_a_run_that_is_resumed_runs_nothing_out_of_its_folder(canary, run):
    """From within the folder, whose modules Python would import."""
    (run / "evil.py").write_text(_CODE.format(canary=str(canary)))
    (run / "command.yaml").write_text("{overrides: ['plugins=[evil]', 'logger._target_=evil.Evil'], options: []}")
    command = [sys.executable, "-m", "visllama", "train", "resume=.", "check_only=true"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=run)
    assert (
        ended.returncode == 2 and "'plugins=[evil]' logger._target_=evil.Evil resume=. check_only=true" in ended.stderr
    )
    assert "Traceback" not in ended.stderr
