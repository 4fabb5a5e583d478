"""The LLaVA folder in fresh environments with the last transformers 4 and the newest: the same logits and captions.

`.ci/run` makes the environments, which hold torch, transformers and pillow alone, and names their Pythons in
VISLLAMA_RELEASES.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

import visllama
from tests.support.commands import ROOT
from tests.support.exported import VICUNA
from tests.support.families import save_language_model
from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.runner import sample_maker
from visllama.release.llava import write_llava
from visllama.release.read_back import make_probe

PYTHONS = [path for path in os.environ.get("VISLLAMA_RELEASES", "").split(":") if path]
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8}
"""Of the language model; about 6 M parameters."""
MODELS = {
    "tiny": {},
    "tiny-lora": {"lora": True},
    "tiny-tied-lora": {"lora": True, "family": "qwen2", "sizes": {}},
    "small": {"family": "llama", "sizes": SMALL},
    "small-tied-lora": {"lora": True, "family": "qwen2", "sizes": SMALL},
}
NUM_SCENES = 200


@pytest.mark.slow
@pytest.mark.skipif(not PYTHONS, reason="no environments of other releases: .ci/run makes them")
def test_old_and_new_transformers_read_the_same(save_model, tmp_path):
    scenes = ScenesSource("test", NUM_SCENES, 1)
    images = [scenes[i]["image"] for i in range(NUM_SCENES)]
    expected = {}
    for name, kind in MODELS.items():
        base = None
        if "family" in kind:
            base = save_language_model(kind["family"], tmp_path / f"{name}-base", **kind["sizes"])
        model, weights = save_model("patch_mlp", kind.get("lora", False), base, name=f"{name}-weights")
        pipeline = visllama.load(weights, accelerator="cpu", merge=True)
        expected[name] = pipeline.caption(images)
        assert len(set(expected[name])) > 20, "captions that are all alike would prove little"

        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        write_llava(folder / "model", model.merge_adapter(), VICUNA, pipeline.end_ids, 40, "5GB")
        _write_expected(folder, model, images)

    for python in PYTHONS:
        result = tmp_path / "result.json"
        command = [python, str(ROOT / "tests/scripts/read_llava.py"), str(result), *(str(tmp_path / n) for n in MODELS)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr[-3000:]
        found = json.loads(result.read_text())
        for name, said in found["folders"].items():
            where = f"{name}, transformers {found['transformers']}"
            print(f"{where}: logits differ by {said['difference']:.2g}")
            assert said["missing"] == said["unexpected"] == [], where
            assert said["difference"] <= 1e-5, f"{where}: fp32, of logits below 30"
            assert said["captions"] == expected[name], where
            assert said["sampled"] == 10_000 and said["added_ids_sampled"] == 0, where


def _write_expected(folder, model, images):
    """Write the prompt, the pixels, and the model's own logits of the first picture."""
    maker = sample_maker(model, VICUNA)
    transform = model.vision_encoder.transform
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    pixels = torch.stack([(transform(image) / 255 - mean) / std for image in images])
    probe = make_probe(model, maker)
    with torch.no_grad():
        logits = model(probe.input_ids, pixels[:1]).logits
    size = logits.shape[-1]
    ids = probe.input_ids.clone()
    for ours, theirs in ((-2, size), (-3, size + 1), (-1, size + 2)):
        ids[probe.input_ids == ours] = theirs
    save_file(
        {"input_ids": ids, "pixel_values": pixels, "logits": logits.contiguous()}, folder / "expected.safetensors"
    )
