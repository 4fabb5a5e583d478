import logging
from pathlib import Path

from transformers.utils import logging as transformers_logging

from visllama.model.pretrained import SHIPPED, locate, quietly


def test_shipped_backbones_are_in_the_package():
    assert Path(locate("visllama:clip"), "model.safetensors").is_file()
    assert Path(locate("visllama:llama"), "tokenizer.json").is_file()
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 6e6, "they travel in git and in the wheel"


def test_anything_else_is_left_alone():
    assert locate("some/folder") == "some/folder" and locate("org/model") == "org/model"


def test_quietly_puts_things_back():
    before = transformers_logging.get_verbosity()
    with quietly():
        assert transformers_logging.get_verbosity() == logging.ERROR
    assert transformers_logging.get_verbosity() == before
