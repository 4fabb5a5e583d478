import torch
from transformers import CLIPImageProcessorPil, CLIPModel

from visllama.data.scenes.source import ScenesSource
from visllama.model.pretrained import locate
from visllama.model.vision_encoder import CLIPVisionEncoder


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
