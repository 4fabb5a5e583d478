"""What would be uploaded, and the upload itself, to a stand-in for the hub."""

from __future__ import annotations

import logging
import os

import pytest

from tests.support.receiving_hub import COMMIT, ReceivingHub
from visllama.errors import ConfigError
from visllama.release.push import _reason, list_upload, push

SECRET = "hf_secretsecretsecret"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# a\n",
    "visllama.json": b"{}",
    "visllama.safetensors": bytes(3000),
    "samples/1.png": b"\x89PNG....",
    ".eval_results/a.yaml": b"- value: 1\n",
    "a[1].txt": b"a name that is a pattern, too",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Yield a hub that the client knows, with a token that somebody has saved on this machine."""
    (tmp_path / "token").write_text("hf_saved")
    with ReceivingHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)  # one that is not given
        yield hub


def test_lists_what_would_go(folder):
    assert dict(list_upload(folder)) == {name: len(content) for name, content in FILES.items()}


@pytest.mark.parametrize("name", ["a.pkl", "rest.pt", "pytorch_model.bin", "evil.py", ".env", "x/.git/config"])
def test_what_is_no_data_is_refused(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("words")
    with pytest.raises(ConfigError, match=rf"not uploaded, it holds {name}: only .safetensors .json"):
        list_upload(folder)


def test_links_pipes_and_nothing_are_refused(folder, tmp_path):
    (folder / "secret.json").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match=r"secret\.json \(a link\)"):
        list_upload(folder)
    (folder / "secret.json").unlink()
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(ConfigError, match=r"pipe\.json: cannot be read \(pipe\.json is no regular file\)"):
        list_upload(folder)
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ConfigError, match="there is nothing to upload"):
            list_upload(nothing)


def test_a_folder_arrives_as_it_is(folder, hub, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with caplog.at_level(logging.DEBUG):
        address = push(folder, "user/name")
    assert address == f"{hub.address}/user/name/commit/{COMMIT}"
    assert hub.files == FILES
    assert hub.tokens == {SECRET}
    is_private = [one.get("private") or one.get("visibility") == "private" for one in hub.created]
    assert is_private == [True]
    assert SECRET not in "".join([*capfd.readouterr(), caplog.text])


def test_without_a_token_nothing_goes(folder, hub, monkeypatch):
    """One that was saved by `hf auth login` is not read."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"the environment variable HF_TOKEN is not set.*Nothing was uploaded"):
        push(folder, "user/name")
    assert not hub.created and not hub.tokens


@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_refusal_says_what_to_do_and_holds_no_token(folder, hub, monkeypatch, capfd, caplog, status):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.status = status
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as refused:
        push(folder, "user/name")
    assert str(refused.value).startswith("push=user/name: not uploaded: ")
    assert (status == 400) or f"the hub refuses the token of HF_TOKEN ({status})" in str(refused.value)
    assert refused.value.__cause__ is None
    assert SECRET not in "".join([str(refused.value), *capfd.readouterr(), caplog.text])
    assert not hub.files


def test_a_name_that_is_none_is_refused(folder):
    with pytest.raises(ConfigError, match="a repository on the hub is user/name"):
        push(folder, "name")


def test_a_token_at_the_end_of_what_is_shown_is_not_printed_in_part():
    message = _reason(OSError("x" * 490 + SECRET), SECRET)
    assert SECRET[:4] not in message and message.endswith("$HF_TOKEN")
