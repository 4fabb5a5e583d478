"""An encoder and a language model of one's own, from a package outside: trained by the real program, loaded again."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.support.verbs import train
from visllama.errors import ConfigError
from visllama.model.weights import frozen_hashes, load_weights

MINE = '''
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from visllama.images.transform import ImageTransform
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.vision_encoder import VisionEncoder, VisionFeatures


class Pixels(VisionEncoder):
    """Each of four quarters of the picture is a patch; frozen random features."""

    def __init__(self, width):
        super().__init__()
        self.pooled_dim, self.patch_dim, self.num_patches = width, width, 4
        self.transform = ImageTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.project = nn.Conv2d(3, width, 8, stride=8)

    def load_base_weights(self, dtype):
        generator = torch.Generator().manual_seed(5)
        for p in self.project.parameters():
            p.data = torch.randn(p.shape, generator=generator).to(dtype)

    def encode(self, pixel_values):
        patches = self.project(pixel_values).flatten(2).transpose(1, 2)
        return VisionFeatures(patches.mean(1), patches)


class SmallGPT2:
    """Another family, with the embedded world's tokenizer, made on the spot."""

    def __init__(self, width):
        self.config = GPT2Config(vocab_size=480, n_embd=width, n_layer=1, n_head=2, n_positions=300, bos_token_id=1, eos_token_id=3)
        self.tokenizer = PretrainedLanguageModel("visllama:llama").tokenizer

    def build(self):
        with torch.device("meta"):
            return GPT2LMHeadModel(self.config)

    def load(self, dtype):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return GPT2LMHeadModel(self.config).to(dtype).eval()
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "seams.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for path, target in (("vision_encoder/pixels", "Pixels"), ("language_model/small", "SmallGPT2")):
        file = tmp_path / "conf" / "model" / f"{path}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"_target_: seams.{target}\nwidth: 24\n")
    yield tmp_path
    sys.modules.pop("seams", None)


def test_trained_saved_and_loaded_by_name(compose_config, lab):
    cfg = compose_config(
        *(
            "train",
            "model/vision_encoder=pixels",
            "model/language_model=small",
            "model/connector=patch_mlp",
            "trainer=cpu",
        ),
        *(
            "plugins=[seams]",
            "trainer.max_steps=3",
            "stage.global_batch_size=4",
            "data.num_val_records=4",
            "judge=false",
        ),
        config_dir=lab / "conf",
    )
    facts = train(cfg)["train"]
    with pytest.raises(ConfigError, match=r"unknown vision_encoder 'Pixels'.*plugins=\[PACKAGE\]"):
        load_weights(lab / "weights")
    model, description = load_weights(lab / "weights", plugins=["seams"])
    assert [description["parts"][part]["kind"] for part in ("vision_encoder", "language_model")] == [
        "Pixels",
        "SmallGPT2",
    ]
    assert "seams" not in (lab / "weights" / "visllama.json").read_text()
    assert frozen_hashes(model) == facts["frozen_sha256"]
    assert model.num_image_tokens == 4 and not torch.equal(model.markers[0], model.markers[1])
