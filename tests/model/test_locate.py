"""Where a pretrained model is looked for, in which order."""

from __future__ import annotations

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
