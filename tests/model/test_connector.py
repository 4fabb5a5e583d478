import pytest
import torch
from torch.nn import functional as F

from visllama.model.connector import MLPConnector, PatchMLPConnector, ResamplerConnector, TransformerConnector


def test_mlp_is_two_layers_with_tanh():
    connector = MLPConnector(vision_dim=6, language_dim=8, num_image_tokens=3, hidden_dim=5)
    features = torch.randn(2, 6)
    expected = (
        torch.tanh(features @ connector.hidden.weight.T + connector.hidden.bias) @ connector.output.weight.T
        + connector.output.bias
    )
    assert torch.allclose(connector(features), expected.view(2, 3, 8), atol=1e-6)


def test_published_width_makes_the_published_size():
    """K * D / 2 = 20480 between CLIP-L/14's 768 and ten vectors of LLaMA-7B's 4096: 854,650,880 (DESIGN 8, peers B8)."""
    with torch.device("meta"):
        connector = MLPConnector(768, 4096, 10, hidden_dim=None)
    assert connector.hidden.out_features == 20480
    assert sum(p.numel() for p in connector.parameters()) == 854_650_880


def test_transformer_lets_constants_attend_to_the_mapped_vector():
    """Every constant's output depends on the pooled vector and on the other constants; no two images meet."""
    torch.manual_seed(0)
    connector = TransformerConnector(6, 8, 3, hidden_dim=16, num_layers=2, num_heads=2, num_mapped_tokens=4).double()
    pooled = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    image_embeds = connector(pooled)
    assert image_embeds.shape == (2, 3, 8)
    for k in range(3):
        seen, others = torch.autograd.grad(
            image_embeds[0, k].square().sum(), (pooled, connector.constants), retain_graph=True
        )
        assert seen[0].norm() > 0 and seen[1].abs().max() == 0 and (others.norm(dim=1) > 0).all()
    assert (image_embeds[0, 0] - image_embeds[0, 1]).norm() > 1e-3


def test_patch_mlp_maps_each_patch_by_itself():
    connector = PatchMLPConnector(6, 8, num_image_tokens=5)
    patches = torch.randn(2, 5, 6)
    by_hand = F.gelu(patches[1, 3] @ connector.hidden.weight.T + connector.hidden.bias)
    by_hand = by_hand @ connector.output.weight.T + connector.output.bias
    assert connector(patches).shape == (2, 5, 8) and connector.hidden.out_features == 8
    assert torch.allclose(connector(patches)[1, 3], by_hand, atol=1e-6)


@pytest.mark.parametrize("kind", [TransformerConnector, ResamplerConnector])
def test_heads_must_divide_the_width(kind):
    with pytest.raises(ValueError, match="num_heads=3 does not divide hidden_dim=16"):
        kind(6, 8, 3, hidden_dim=16, num_heads=3)


def test_resampler_looks_at_every_patch_and_its_queries_differ():
    connector = ResamplerConnector(6, 8, num_image_tokens=4, hidden_dim=16, num_heads=2).double()
    patches = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    image_embeds = connector(patches)
    assert image_embeds.shape == (2, 4, 8)
    image_embeds[0].sum().backward()
    assert (patches.grad[0].norm(dim=1) > 0).all() and patches.grad[1].abs().max() == 0
    assert (image_embeds[0, 0] - image_embeds[0, 1]).norm() > 1e-3


def test_resampler_normalises_its_heads_in_the_dtype_of_its_weights_under_autocast():
    norm = ResamplerConnector(vision_dim=8, language_dim=6, num_image_tokens=3, hidden_dim=16).blocks[0].norm_head_query
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "consumes"),
    [
        (MLPConnector, "pooled"),
        (TransformerConnector, "pooled"),
        (PatchMLPConnector, "patch"),
        (ResamplerConnector, "patch"),
    ],
)
def test_what_each_consumes(kind, consumes):
    assert kind.consumes == consumes
