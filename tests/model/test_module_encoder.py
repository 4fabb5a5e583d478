import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visllama.errors import ConfigError
from visllama.model.module_encoder import ModuleEncoder

STATISTICS = {"size_px": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, kernel_size=8, stride=8), nn.BatchNorm2d(6))


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "network.safetensors"
    save_file(network().state_dict(), path)
    return path


def test_a_map_of_a_network_becomes_its_places(weights):
    encoder = ModuleEncoder(network, weights, **STATISTICS)
    assert (encoder.num_patches, encoder.patch_dim, encoder.pooled_dim) == (4, 6, 6)
    assert all(parameter.is_meta for parameter in encoder.parameters()), "no memory before the weights are loaded"

    encoder.load_base_weights(torch.float64)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    features = encoder.eval()(images)
    expected = encoder.module((images.double() / 255 - 0.5) / 0.5)
    for row in range(2):
        for column in range(2):
            place = features.patch[:, 2 * row + column]
            # The encoder normalises in fp32, with 7 digits.
            torch.testing.assert_close(place, expected[:, :, row, column], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(features.pooled, expected.mean((2, 3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("last", "num_patches", "dim"),
    [(nn.Identity(), 4, 6), (nn.Flatten(2), 6, 4), (nn.Flatten(), 1, 24)],
)
def test_other_outputs_are_taken_too(weights, last, num_patches, dim):
    encoder = ModuleEncoder(lambda: nn.Sequential(network(), last), weights, **STATISTICS)
    assert (encoder.num_patches, encoder.patch_dim) == (num_patches, dim)


def test_weights_stay_as_they_are_stored_where_that_is_asked_for(tmp_path):
    half = {name: tensor.to(torch.bfloat16) for name, tensor in network().state_dict().items() if tensor.ndim}
    count = {"1.num_batches_tracked": torch.tensor(0)}
    save_file(half | count, tmp_path / "half.safetensors")
    encoder = ModuleEncoder(network, tmp_path / "half.safetensors", **STATISTICS)
    encoder.load_base_weights("auto")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


def test_a_missing_file_is_named_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"weights=/nowhere\.safetensors: no such file"):
        ModuleEncoder(network, "/nowhere.safetensors", **STATISTICS)


def test_an_output_of_another_shape_is_named(weights):
    with pytest.raises(ConfigError, match=re.escape("its module makes (1, 24, 1, 1, 1)")):
        ModuleEncoder(
            lambda: nn.Sequential(network(), nn.Flatten(), nn.Unflatten(1, (24, 1, 1, 1))), weights, **STATISTICS
        )


def test_weights_of_another_network_are_refused(weights):
    encoder = ModuleEncoder(lambda: nn.Conv2d(3, 5, 8, 8), weights, **STATISTICS)
    with pytest.raises(ConfigError, match="does not fit the module"):
        encoder.load_base_weights(torch.float32)
