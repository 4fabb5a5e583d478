"""Where a pretrained model is looked for, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from visllama.errors import ConfigError
from visllama.model.locate import SHIPPED, locate


def test_a_shipped_name_is_a_folder_of_the_package_alone(tmp_path):
    (tmp_path / "visllama:llama").mkdir()
    assert locate("visllama:llama", tmp_path) == str(SHIPPED / "llama")


def test_a_folder_under_models_comes_before_one_of_that_name_here(tmp_path, monkeypatch):
    models, here = tmp_path / "models", tmp_path / "here"
    for folder in (models, here):
        (folder / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert locate("org/model", models) == str(models / "org" / "model")
    assert locate("org/model") == str(here / "org" / "model")


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == str(tmp_path / "model")


def test_gguf_beside_weights_that_are_read_is_no_matter(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"GGUF is llama\.cpp's form"):
        locate(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert locate(str(tmp_path)) == str(tmp_path)


def test_shipped_backbones_are_in_the_package():
    assert Path(locate("visllama:clip"), "model.safetensors").is_file()
    assert Path(locate("visllama:llama"), "tokenizer.json").is_file()
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 6e6, "they travel in git and in the wheel"


def test_a_hub_id_is_left_alone():
    assert locate("org/model") == "org/model" and locate("gpt2") == "gpt2"


def test_a_folder_under_models_comes_before_the_hub(tmp_path):
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert locate("org/model", tmp_path) == str(tmp_path / "org" / "model")
    assert locate(str(tmp_path / "org")) == str(tmp_path / "org")


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "a/b/c", "~/nowhere", ""])
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(ConfigError, match=f"path={path}: no such folder"):
        locate(path)


def test_an_unknown_shipped_name_lists_those_there_are():
    with pytest.raises(ConfigError, match="path=visllama:gpt: there are visllama:clip, visllama:llama"):
        locate("visllama:gpt")


@pytest.mark.parametrize("as_file", [True, False])
def test_gguf_names_the_command_that_converts_it(tmp_path, as_file):
    folder = tmp_path / "org" / "vicuna-GGUF"
    folder.mkdir(parents=True)
    file = folder / "vicuna.Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    (folder / "config.json").write_text("{}")
    given = "org/vicuna-GGUF/vicuna.Q4_K_M.gguf" if as_file else "org/vicuna-GGUF"
    with pytest.raises(ConfigError, match="GGUF is llama") as error:
        locate(given, tmp_path)
    said = str(error.value)
    assert f"path={given}:" in said and f"pretrained_model_name_or_path='{folder}', gguf_file='{file.name}'" in said
    assert said.endswith(f"and give path={folder / 'vicuna.Q4_K_M'}")

    (folder / "model.safetensors").write_bytes(b"")
    assert as_file or locate(given, tmp_path) == str(folder), "transformers' own form lies beside it"
