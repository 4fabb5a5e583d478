"""With `patch_mlp`, and markers set to two ordinary tokens' embeddings, we are transformers' LLaVA to the last digits."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.support.families import save_encoder, save_language_model
from visllama.model.weights import build_model
from visllama.text.tokens import image_span

BOI, EOI, IMAGE = 7, 9, 11
"""Ordinary tokens that stand for our markers, and the one that LLaVA replaces."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Ours, and LLaVA holding the same tensors."""
    root = tmp_path_factory.mktemp("models")
    save_encoder("clip", root / "clip")
    save_language_model("llama", root / "llama")
    parts = {
        "vision_encoder": {"kind": "CLIPVisionEncoder", "arguments": {"path": "clip"}},
        "connector": {"kind": "PatchMLPConnector", "arguments": {"num_image_tokens": None}},
        "language_model": {"kind": "PretrainedLanguageModel", "arguments": {"path": "llama"}},
    }
    torch.manual_seed(1)
    ours = build_model(parts, ("connector", "markers"), models=root).load_base_weights().eval()
    embeddings = ours.language_model.get_input_embeddings().weight
    ours.markers.data = embeddings[[BOI, EOI]].clone()

    config = LlavaConfig(
        vision_config=CLIPVisionConfig.from_pretrained(root / "clip").to_dict(),
        text_config=ours.language_model.config.to_dict(),
        image_token_index=IMAGE,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    llava = LlavaForConditionalGeneration(config).eval()
    vision = {k: v for k, v in ours.vision_encoder.model.state_dict().items() if not k.startswith("visual_projection")}
    names = llava.model.vision_tower.state_dict()
    vision = {k if k in names else k.removeprefix("vision_model."): v for k, v in vision.items()}
    llava.model.vision_tower.load_state_dict(vision)
    for theirs, mine in (("linear_1", ours.connector.hidden), ("linear_2", ours.connector.output)):
        getattr(llava.model.multi_modal_projector, theirs).load_state_dict(mine.state_dict())
    llava.model.language_model.load_state_dict(ours.language_model.model.state_dict())
    llava.lm_head.load_state_dict(ours.language_model.lm_head.state_dict())
    return ours, llava


def both(pair, texts: list[list[int]], pixel_values):
    """Return the two models' logits of right-padded rows `BOS [boi] image*K [eoi] text`."""
    ours, llava = pair
    longest = max(map(len, texts))
    padded = [text + [0] * (longest - len(text)) for text in texts]
    mask = torch.tensor([[1] * (3 + ours.num_image_tokens + len(t)) + [0] * (longest - len(t)) for t in texts])
    mine = torch.tensor([[1, *image_span(ours.num_image_tokens), *text] for text in padded])
    theirs = torch.tensor([[1, BOI, *[IMAGE] * ours.num_image_tokens, EOI, *text] for text in padded])
    with torch.no_grad():
        expected = llava(input_ids=theirs, pixel_values=pixel_values, attention_mask=mask).logits
        found = ours(mine, pixel_values).logits, ours(mine, pixel_values, attention_mask=mask).logits
    return found, expected, mask.bool()


@pytest.mark.parametrize(
    "texts", [[[20, 30, 40]], [[20, 30, 40], [50], [60, 70, 80, 90, 100, 110]]], ids=["one", "right-padded"]
)
def test_logits_equal_llavas(pair, texts):
    """1e-5: a few rounding errors of fp32 sums of some hundred terms; positions on padding mean nothing."""
    torch.manual_seed(2)
    found, expected, real = both(pair, texts, torch.randn(len(texts), 3, 48, 48))
    for logits in found:
        assert (logits - expected)[real].abs().max() <= 1e-5
    assert expected[real].std() > 0.05, "logits that are all alike would prove little"


def test_the_image_matters_to_both(pair):
    (first, _), one, _ = both(pair, [[20, 30]], torch.zeros(1, 3, 48, 48))
    (second, _), two, _ = both(pair, [[20, 30]], torch.ones(1, 3, 48, 48))
    assert (first - second).abs().max() > 1e-3 and (one - two).abs().max() > 1e-3
