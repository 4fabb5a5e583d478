"""Connectors: the trained map from an image's features to `K` vectors in the language model's input space.

A connector is an `nn.Module` with `__init__(vision_dim, language_dim, ...)`, a class attribute `consumes` ("pooled" or
"patch") and `forward(features) -> (N, K, D)`. K is the `num_image_tokens` of its YAML, else what it makes of zeros.

It may have a class attribute `lr_scale`: how fast it learns beside `optim.lr`, whose published value is an MLP's.
One that makes a token of each patch leaves `num_image_tokens: null` in its YAML, and is told P.

Parameters and persistent buffers are kept in weights and checkpoints. Buffers that a forward pass changes (BatchNorm's
statistics, a counter) are of a rank's own micro-batches, and all ranks take the first one's after each step: so with
BatchNorm, the ranks and `micro_batch_size` change the training. A batch without images changes none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLPConnector(nn.Module):
    """Map one pooled vector to `num_image_tokens` language-model-width vectors.

    Args:
        vision_dim: Width of the pooled features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Vectors an image (K).
        hidden_dim: Width between the two layers; None is the published `K * D / 2`, which makes 855 M parameters at 7B.
            The default is a bottleneck.

    Reference:
        Mokady et al. 2021, arXiv:2111.09734, section 3.2.
    """

    consumes = "pooled"

    def __init__(
        self, vision_dim: int, language_dim: int, num_image_tokens: int, hidden_dim: int | None = 1024
    ) -> None:
        super().__init__()
        self.num_image_tokens = num_image_tokens
        hidden_dim = hidden_dim or num_image_tokens * language_dim // 2
        self.hidden = nn.Linear(vision_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_image_tokens * language_dim)

    def forward(self, features: Float[Tensor, "N Dv"]) -> Float[Tensor, "N K D"]:
        return self.output(torch.tanh(self.hidden(features))).unflatten(1, (self.num_image_tokens, -1))


class TransformerConnector(nn.Module):
    """Map one pooled vector to a few tokens, and let learned constants attend to them and to each other.

    Args:
        vision_dim: Width of the pooled features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Learned constants, so vectors an image (K).
        hidden_dim: Width inside. Published is D, where eight layers make 1.3 G parameters at 7B; this is a bottleneck.
        num_layers: Transformer layers.
        num_heads: Attention heads; must divide `hidden_dim`.
        num_mapped_tokens: Tokens that the pooled vector is mapped to.

    Reference:
        The Transformer mapping network: Mokady et al. 2021, arXiv:2111.09734, section 3.2.
    """

    consumes = "pooled"
    lr_scale = 0.25

    def __init__(
        self, vision_dim: int, language_dim: int, num_image_tokens: int, hidden_dim: int = 512, num_layers: int = 8,
        num_heads: int = 8, num_mapped_tokens: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_heads(hidden_dim, num_heads)
        self.num_image_tokens, self.num_mapped_tokens = num_image_tokens, num_mapped_tokens
        self.input = nn.Linear(vision_dim, num_mapped_tokens * hidden_dim)
        self.constants = nn.Parameter(torch.randn(num_image_tokens, hidden_dim) * hidden_dim**-0.5)
        layer = nn.TransformerEncoderLayer(
            hidden_dim, num_heads, 2 * hidden_dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(hidden_dim), enable_nested_tensor=False)
        self.output = nn.Linear(hidden_dim, language_dim)

    def forward(self, features: Float[Tensor, "N Dv"]) -> Float[Tensor, "N K D"]:
        mapped = self.input(features).unflatten(1, (self.num_mapped_tokens, -1))
        constants = self.constants.expand(len(features), -1, -1)
        return self.output(self.layers(torch.cat([mapped, constants], dim=1))[:, self.num_mapped_tokens :])


class PatchMLPConnector(nn.Module):
    """Map each patch to one language-model-width vector, by two layers with a GELU between.

    Args:
        vision_dim: Width of the patch features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Patches an image (K = P); None in a config, where it is read from the encoder.
        hidden_dim: Width between the two layers; None is the published D.

    Reference:
        LLaVA-1.5: Liu et al. 2023, arXiv:2310.03744, section 3.3.
    """

    consumes = "patch"

    def __init__(
        self, vision_dim: int, language_dim: int, num_image_tokens: int | None, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        self.num_image_tokens = num_image_tokens
        self.hidden = nn.Linear(vision_dim, hidden_dim or language_dim)
        self.output = nn.Linear(hidden_dim or language_dim, language_dim)

    def forward(self, features: Float[Tensor, "N P Dv"]) -> Float[Tensor, "N P D"]:
        return self.output(F.gelu(self.hidden(features)))


def _check_heads(hidden_dim: int, num_heads: int) -> None:
    if hidden_dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide hidden_dim={hidden_dim}")


class _HeadNorm(nn.RMSNorm):
    """An RMSNorm that computes in the dtype of its weight, as autocast on CUDA has it; that on the CPU would not."""

    def forward(self, x: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        return super().forward(x.to(self.weight.dtype))


class _CrossAttentionBlock(nn.Module):
    """Queries look at the patches and at each other, then think: pre-norm attention and a GELU MLP.

    Queries and keys are normalised by head, which lets attention bear high learning rates.

    Reference:
        Dehghani et al. 2023, arXiv:2302.05442, section 2.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_queries, self.norm_patches, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.output = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_head_query, self.norm_head_key = _HeadNorm(dim // num_heads), _HeadNorm(dim // num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, queries: Float[Tensor, "N K H"], patches: Float[Tensor, "N P H"]) -> Float[Tensor, "N K H"]:
        asking = self.norm_queries(queries)
        seen = torch.cat([self.norm_patches(patches), asking], dim=1)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(asking), *self.key_value(seen).chunk(2, dim=-1))
        )
        found = F.scaled_dot_product_attention(self.norm_head_query(query), self.norm_head_key(key), value)
        queries = queries + self.output(found.transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm_mlp(queries))


class ResamplerConnector(nn.Module):
    """Let `num_image_tokens` learned queries cross-attend to the patch features.

    Args:
        vision_dim: Width of the patch features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Learned queries, so vectors an image (K).
        hidden_dim: Width inside. The patches come with the encoder's own positions in them.
        num_layers: Cross-attention blocks.
        num_heads: Attention heads; must divide `hidden_dim`.

    Reference:
        The Perceiver resampler: Alayrac et al. 2022, arXiv:2204.14198, section 2.1.
    """

    consumes = "patch"
    lr_scale = 0.25  # at the whole of the published 4e-3 its attention learns nothing of the images (measured)

    def __init__(
        self, vision_dim: int, language_dim: int, num_image_tokens: int, hidden_dim: int = 512, num_layers: int = 2,
        num_heads: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_heads(hidden_dim, num_heads)
        self.num_image_tokens = num_image_tokens
        self.queries = nn.Parameter(torch.randn(num_image_tokens, hidden_dim) * hidden_dim**-0.5)
        self.input = nn.Linear(vision_dim, hidden_dim)
        self.blocks = nn.ModuleList(_CrossAttentionBlock(hidden_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, language_dim)

    def forward(self, features: Float[Tensor, "N P Dv"]) -> Float[Tensor, "N K D"]:
        patches = self.input(features)
        queries = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, patches)
        return self.output(self.norm(queries))
