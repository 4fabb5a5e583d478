import re

import pytest
from torch import nn

from visllama.errors import ConfigError
from visllama.images.transform import ImageTransform
from visllama.model.contracts import check_encoder, check_language_model
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.vision_encoder import VisionEncoder, VisionFeatures

TRANSFORM = ImageTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Quarters(VisionEncoder):
    """Each quarter of an image is a patch."""

    def __init__(self, num_patches=4, patch_dim=6, transform=TRANSFORM):
        super().__init__()
        self.num_patches, self.patch_dim, self.pooled_dim = num_patches, patch_dim, 6
        self.transform = transform
        self.project = nn.Conv2d(3, 6, 8, 8, device="meta")

    def load_base_weights(self, dtype):
        raise AssertionError("no weight is loaded to be checked")

    def encode(self, pixel_values):
        patches = self.project(pixel_values).flatten(2).transpose(1, 2)
        return VisionFeatures(patches.mean(1), patches)


class Bare(Quarters):
    def forward(self, pixel_values):
        return self.project(pixel_values.float())


class NeedsNumbers(Quarters):
    def encode(self, pixel_values):
        return super().encode(pixel_values * pixel_values.max().item())


def test_an_encoder_that_keeps_the_contract_is_taken():
    check_encoder(Quarters())


def test_one_that_cannot_run_without_numbers_is_tried_later():
    check_encoder(NeedsNumbers())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Linear(2, 2), "Linear has to derive from visllama.model.vision_encoder.VisionEncoder"),
        (Quarters(num_patches=None), "Quarters.__init__ has to set self.num_patches, a whole number, and it is None"),
        (Quarters(transform="224"), "Quarters.__init__ has to set self.transform, as ImageTransform(size_px=224"),
        (Bare(), "Bare.encode has to return VisionFeatures(pooled=..., patch=...), and returns a Tensor"),
        (
            Quarters(patch_dim=8),
            "Quarters makes patch features of shape (1, 4, 6) of one image, and its pooled_dim, patch_dim and "
            "num_patches say (1, 4, 8)",
        ),
        (
            Quarters(transform=ImageTransform(4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
            "Quarters fails on an image of (1, 3, 4, 4): ",
        ),
    ],
)
def test_what_an_encoder_lacks_is_named_with_an_example(encoder, message):
    if isinstance(encoder, nn.Linear):
        encoder.__class__ = type("Linear", (nn.Linear,), {"__module__": "mylab"})
    with pytest.raises(ConfigError, match=f"^model.vision_encoder: {re.escape(message)}") as refused:
        check_encoder(encoder)
    assert '"Vision encoder" in ' in str(refused.value) or "fails on" in message


class Mine:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def test_a_language_model_of_transformers_is_taken():
    source = PretrainedLanguageModel("visllama:llama")
    check_language_model(source.build(), source)


def test_another_one_is_refused_with_an_example():
    with pytest.raises(
        ConfigError, match=r"Mine\.build\(\) has to return a PreTrainedModel.*returns a Linear; an example"
    ):
        check_language_model(nn.Linear(2, 2), Mine(None))


def test_a_tokenizer_that_cannot_pad_is_refused():
    source = PretrainedLanguageModel("visllama:llama")
    mine = Mine(source.tokenizer)
    mine.tokenizer.pad_token = None
    with pytest.raises(ConfigError, match=r"Mine\.tokenizer has no pad_token_id"):
        check_language_model(source.build(), mine)
