"""`visllama.load("user/name")`: two files of one commit, and nothing of a repository runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import visllama
from tests.support.hub import COMMIT, Hub
from tests.support.tiny import TEXT, tiny_parts
from visllama.errors import ConfigError
from visllama.inference.hub import is_repository
from visllama.model.weights import save_weights

NEWER, BARE = "f" * 40, "e" * 40


@pytest.fixture
def weights(make_model, tmp_path):
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / "repository")
    return tmp_path / "repository"


LOAD = """
import sys
import visllama
from visllama.errors import ConfigError
for name, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        model = visllama.load(name, revision=revision or None, accelerator="cpu")
        print(sum(p.double().sum() for p in model.model.connector.parameters()).item())
    except ConfigError as error:
        print(error)
"""


def load(hub: Hub | str, home: Path, *named: str, **variables: str) -> list[str]:
    """Load repositories, each by its name and its revision, in one process; return what was said of each."""
    address = hub if isinstance(hub, str) else hub.address
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home / "home"), **variables}
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, *named], env=environment, capture_output=True, text=True, timeout=120, cwd=home
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.splitlines()


def sum_of(folder: Path) -> str:
    """Return what tells weights from others."""
    pipeline = visllama.load(folder, accelerator="cpu")
    return str(sum(p.double().sum() for p in pipeline.model.connector.parameters()).item())


def fetched(home: Path) -> set[str]:
    return {path.name for path in (home / "home").rglob("snapshots/*/*")}


def test_what_has_the_form_of_a_repositorys_name():
    assert all(map(is_repository, ("user/name", "a-b/c.d_e")))
    refused = ("name", "a/b/c", "../x", "./x", "/x", "~/x", "a//b", "a/", "a/..", "a--b/c", "hf://a/b", "a b/c", None)
    assert not any(map(is_repository, (*refused, Path("user/name"))))


def test_two_files_of_one_commit_come_or_the_reason_why_not(weights, make_model, tmp_path):
    newer = tmp_path / "newer"
    save_weights(make_model(dtype=torch.float32, seed=1), tiny_parts(), TEXT, newer)
    for name in ("README.md", "pytorch_model.bin", "evil.py", "config.json"):
        (newer / name).write_text("words")
    old, new = sum_of(weights), sum_of(newer)
    assert old != new
    bare = tmp_path / "bare"
    bare.mkdir()
    loads = [
        ("user/name", "", new),
        ("user/name", "v1", old),
        ("user/name", COMMIT, old),
        ("user/name", BARE, "weights=user/name: holds no visllama.json: give a repository"),
        ("user/name", "a" * 40, f"weights=user/name revision={'a' * 40}: the repository has no such commit"),
        ("user/gated", "", "weights=user/gated: its owner gives it to those who ask"),
        ("user/none", "", "weights=user/none: no such folder here, and no such repository on the hub"),
    ]
    with Hub(newer) as hub:
        hub.commits = {COMMIT: weights, NEWER: newer, BARE: bare}
        hub.names = {"main": NEWER, "v1": COMMIT}
        hub.refusals = {"user/gated": (403, "GatedRepo"), "user/none": (401, "RepoNotFound")}
        told = load(hub, tmp_path, *(word for name, revision, _ in loads for word in (name, revision)))
        for line, (name, revision, expected) in zip(told, loads, strict=True):
            assert line.startswith(expected), (name, revision)
        assert fetched(tmp_path) == {"visllama.json", "visllama.safetensors"}
        asked = {name for _, name in hub.requests}
        assert not asked & {"README.md", "pytorch_model.bin", "evil.py", "config.json"}

    # What was fetched at a commit needs no network afterwards.
    words = ("user/name", NEWER, "user/name", "", "user/other", COMMIT)
    again, main, other = load("http://127.0.0.1:9", tmp_path, *words, HF_HUB_OFFLINE="1")
    assert again == new
    for line, name in ((main, "user/name"), (other, "user/other")):
        assert "the hub is out of reach" in line
        assert f"hf download {name} visllama.json visllama.safetensors --local-dir WEIGHTS" in line


def test_a_folder_wins_and_has_no_revision(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights, tmp_path / "user" / "name")
    assert visllama.load("user/name", accelerator="cpu").model.num_image_tokens == 10
    with pytest.raises(ConfigError, match="revision=v1: weights=user/name is a folder"):
        visllama.load("user/name", revision="v1")
    with pytest.raises(ConfigError, match="revision=v1: weights=a/b/c is no repository on the hub"):
        visllama.load("a/b/c", revision="v1")
    with pytest.raises(ConfigError, match=r"holds no visllama\.json"):
        visllama.load("a/b/c")


class Payload:
    """What pickle would run on loading."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def edit(folder: Path, **arguments: object) -> None:
    description = json.loads((folder / "visllama.json").read_text())
    description["parts"]["language_model"]["arguments"].update(arguments)
    (folder / "visllama.json").write_text(json.dumps(description))


def test_nothing_of_a_repository_runs(weights, tmp_path):
    """Pickles, code and `auto_map` beside the two files; code and paths named inside them."""
    canary = tmp_path / "canary"
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Evil: pass\n"
    for name in ("evil.py", "__init__.py", "modeling_evil.py"):
        (weights / name).write_text(code)
    for name in ("pytorch_model.bin", "visllama.pkl", "training_args.bin"):
        (weights / name).write_bytes(pickle.dumps(Payload(canary)))
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (weights / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    target = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(canary)]}}
    attacks = [
        ({"trust_remote_code": True}, "language_model"),
        ({"_target_": "os.system"}, "_target_ inside weights is refused"),
        ({"path": target}, "_target_ inside weights is refused"),
        ({"path": "${oc.env:HOME}"}, "inside weights is refused"),
        ({"path": "../repository"}, "language_model"),
        ({"path": "../../x"}, "no such folder"),
        ({"path": "evil/model"}, "language_model"),  # the hub gives this very repository under that name too
        ({"path": ["a"]}, "language_model"),
        ({"attn_implementation": "evil/kernel"}, "language_model"),
    ]
    folders = [shutil.copytree(weights, tmp_path / f"attack{i}") for i in range(len(attacks) + 2)]
    for folder, (arguments, _) in zip(folders, attacks, strict=False):
        edit(folder, **arguments)
    (folders[-2] / "visllama.safetensors").write_bytes(pickle.dumps(Payload(canary)))
    attacks.append(({}, "no safetensors file"))
    (folders[-1] / "visllama.json").write_text("[" * 30_000)
    attacks.append(({}, "no valid JSON"))
    with Hub(weights) as hub:
        hub.commits = {f"{i:040d}": folder for i, folder in enumerate(folders)}
        hub.names["main"] = "0" * 40
        told = load(hub, tmp_path, *(word for commit in hub.commits for word in ("user/name", commit)))
    assert len(told) == len(attacks)
    for line, (arguments, expected) in zip(told, attacks, strict=True):
        assert expected in line, (arguments, line)
    assert not canary.exists(), "something of the repository ran"
    # What the description alone refuses does not fetch the large file.
    assert not (
        tmp_path / "home/hub/models--user--name/snapshots" / f"{len(folders) - 1:040d}/visllama.safetensors"
    ).exists()


@pytest.mark.parametrize("name", ["visllama.json", "visllama.safetensors"])
@pytest.mark.parametrize("kind", ["passwd", "device", "pipe"])
def test_a_local_folder_with_a_link_or_a_pipe_is_refused(weights, name, kind):
    (weights / name).unlink()
    if kind == "pipe":
        os.mkfifo(weights / name)
    else:
        (weights / name).symlink_to({"passwd": "/etc/passwd", "device": "/dev/zero"}[kind])
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        visllama.load(weights)
