import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, Dinov2Model, SiglipVisionModel

from tests.support.families import ENCODERS, SIDE_PX, save_encoder
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.model.locate import locate
from visllama.model.vision_encoder import CLIPVisionEncoder, Dinov2VisionEncoder, SiglipVisionEncoder


def test_features_are_clips_own():
    """Projected embedding and penultimate patches, as transformers' whole CLIP gives them, from raw uint8 pixels."""
    encoder = CLIPVisionEncoder("visllama:clip")
    encoder.load_base_weights(torch.float32)
    clip = CLIPModel.from_pretrained(locate("visllama:clip"), dtype=torch.float32).eval()
    image = ScenesSource("val", 1, 1)[0]["image"]
    floats = CLIPImageProcessorPil.from_pretrained(locate("visllama:clip"))(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = encoder(encoder.transform(image)[None])
        assert torch.allclose(features.pooled, clip.get_image_features(floats).pooler_output, atol=1e-5)
        hidden = clip.vision_model(floats, output_hidden_states=True).hidden_states
        assert torch.allclose(features.patch, hidden[-2][:, 1:], atol=1e-5)
        assert torch.allclose(encoder(floats).patch, features.patch, atol=1e-5), (
            "normalised floats are taken as they are"
        )
    assert features.patch.shape == (1, encoder.num_patches, encoder.patch_dim) == (1, 9, 128)
    assert features.pooled.shape == (1, encoder.pooled_dim)


def test_feature_layer_is_a_choice():
    last, penultimate = CLIPVisionEncoder("visllama:clip", feature_layer=-1), CLIPVisionEncoder("visllama:clip")
    pixels = torch.randint(0, 255, (1, 3, 48, 48), dtype=torch.uint8)
    for encoder in (last, penultimate):
        encoder.load_base_weights(torch.float32)
    assert not torch.allclose(last(pixels).patch, penultimate(pixels).patch)
    assert torch.equal(last(pixels).pooled, penultimate(pixels).pooled)


def test_siglips_features_are_its_own(tmp_path):
    """There is no class token: every token is a patch; pooled is by the attention head."""
    encoder = SiglipVisionEncoder(str(save_encoder("siglip", tmp_path)))
    encoder.load_base_weights(torch.float32)
    siglip = SiglipVisionModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        features = encoder(pixels)
        expected = siglip(pixels, output_hidden_states=True)
    assert torch.allclose(features.pooled, expected.pooler_output, atol=1e-6)
    assert torch.allclose(features.patch, expected.hidden_states[-2], atol=1e-6)
    assert features.patch.shape == (2, encoder.num_patches, encoder.patch_dim) == (2, 9, 32)


def test_dinov2s_features_are_its_own_at_the_processors_size(tmp_path):
    """Trained at 80 pixels and given 48: P follows from what the processor makes, not from the config."""
    encoder = Dinov2VisionEncoder(str(save_encoder("dinov2", tmp_path)))
    encoder.load_base_weights(torch.float32)
    dino, pixels = Dinov2Model.from_pretrained(tmp_path).eval(), torch.randn(2, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        features, expected = encoder(pixels), dino(pixels, output_hidden_states=True)
    assert torch.allclose(features.pooled, expected.last_hidden_state[:, 0], atol=1e-6)
    assert torch.allclose(features.patch, expected.hidden_states[-2][:, 1:], atol=1e-6)
    assert encoder.num_patches == features.patch.shape[1] == 9 and encoder.transform.resize_px == 56


@pytest.mark.parametrize("family", ENCODERS)
def test_another_encoders_folder_is_refused(tmp_path, family):
    save_encoder(family, tmp_path)
    for other in {CLIPVisionEncoder, SiglipVisionEncoder, Dinov2VisionEncoder}:
        if other.__name__ != ENCODERS[family]:
            with pytest.raises(ConfigError, match=f"holds a '{family}'; {other.__name__} reads"):
                other(str(tmp_path))


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="feature_layer=-7: the encoder has 4 layers"):
        CLIPVisionEncoder("visllama:clip", feature_layer=-7)
