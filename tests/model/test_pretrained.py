import logging
import os
import subprocess
import sys

import pytest
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from tests.support.hub import Hub
from visllama.errors import ConfigError
from visllama.model.locate import SHIPPED
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


LOAD = """
from visllama.model.language_model import PretrainedLanguageModel
print(sum(p.numel() for p in PretrainedLanguageModel("org/llama").load("auto").parameters()))
"""
NUM_PARAMETERS = "902272\n"


def start(address: str, home, **variables: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, **pipes)


@pytest.mark.slow
def test_a_node_fetches_a_model_once_and_then_needs_no_network(tmp_path):
    """Two processes of a node load it at once: one downloads while the other waits for it."""
    with Hub(SHIPPED / "llama", readers=2) as hub:
        both = [start(hub.address, tmp_path / "home") for _ in range(2)]
        for process in both:
            said, errors = process.communicate(timeout=120)
            assert said == NUM_PARAMETERS, errors[-3000:]
        weights = "model.safetensors"
        assert hub.requests["HEAD", weights] == 2, "both were about to download it"
        assert hub.requests["GET", weights] == hub.requests["GET", "config.json"] == 1
        hub.requests.clear()
        offline = [start(hub.address, tmp_path / home, HF_HUB_OFFLINE="1") for home in ("home", "another")]
        (said, _), (nothing, errors) = (process.communicate(timeout=120) for process in offline)
        assert said == NUM_PARAMETERS
        assert nothing == "" and "hf download org/llama --local-dir MODELS/org/llama" in errors
        assert hub.requests.total() == 0
