"""Shapes of a model: of parts of the user's own too."""

from __future__ import annotations

from tests.support.plans import lines
from tests.support.verbs import plan

OWN = """
import torch
from torch import nn
from visllama.images.transform import ImageTransform
from visllama.model.vision_encoder import CLIPVisionEncoder, VisionEncoder, VisionFeatures

class Stripes(VisionEncoder):
    def __init__(self, width):
        super().__init__()
        self.pooled_dim = self.patch_dim = width
        self.num_patches = 16
        self.transform = CLIPVisionEncoder("visllama:clip").transform
        self.map = nn.Linear(3 * 9 * 16, width, device="meta")

    def load_base_weights(self, dtype): ...

    def encode(self, pixel_values):
        patches = self.map(pixel_values.flatten(1).unflatten(1, (16, -1)))
        return VisionFeatures(patches.mean(1), patches)
"""


def test_parts_of_ones_own_are_counted(compose_config, tmp_path, monkeypatch):
    (tmp_path / "planlab.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["plugins=[planlab]", "~model.vision_encoder", "+model.vision_encoder._target_=planlab.Stripes"]
    found = plan(compose_config("plan", *own, "+model.vision_encoder.width=24"))
    assert lines(found)["frozen vision encoder"] == 2 * (3 * 9 * 16 * 24 + 24)
    assert {part.name: part.count for part in found.flops}["vision encoder"] == 2 * 3 * 9 * 16 * 24 * 16
    assert any("its class is your own" in said for said in found.assumed)
