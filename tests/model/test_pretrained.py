import logging

import pytest
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from visllama.config import ConfigError
from visllama.model.pretrained import quietly, read


def test_a_model_that_cannot_be_had_names_the_download(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"hf download org/none --revision abc --local-dir MODELS/org/none"):
        read(AutoConfig, "org/none", "abc")


def test_quietly_puts_things_back():
    before = transformers_logging.get_verbosity()
    with quietly():
        assert transformers_logging.get_verbosity() == logging.ERROR
    assert transformers_logging.get_verbosity() == before
