"""Connectors: the trained map from an image's features to `K` vectors in the language model's input space.

A connector is an `nn.Module` with `__init__(vision_dim, language_dim, ...)`, a class attribute `consumes` ("pooled" or
"patch") and `forward(features) -> (N, K, D)`. K is the `num_image_tokens` of its YAML; where the YAML names none, K is
the number of vectors that the connector returns for features of zeros.

A connector may have a class attribute `lr_scale`, which multiplies `optim.lr`: the published learning rate is that of
an MLP. A connector that makes one token of each patch leaves `num_image_tokens: null` in its YAML and receives P.

Parameters and persistent buffers are kept in weights and checkpoints. Each rank updates the buffers that a forward pass
changes (BatchNorm's statistics, a counter) from its own micro-batches, and after each step all ranks take the values of
the first rank. With BatchNorm, the number of ranks and `micro_batch_size` therefore change the training. A batch
without images changes no buffer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLPConnector(nn.Module):
    """Map the pooled vector of an image to `num_image_tokens` vectors (K) as wide as the language model's input.

    Two linear layers with a tanh between them.

    Args:
        vision_dim: Width of the pooled features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Number of vectors an image (K).
        hidden_dim: Width between the two layers. None is the published `K * D / 2`, which makes 855 M parameters at 7B;
            the default is narrower.

    Reference:
        Mokady et al. 2021, arXiv:2111.09734, section 3.2.
    """

    consumes = "pooled"

    def __init__(
        self,
        vision_dim: int,
        language_dim: int,
        num_image_tokens: int,
        hidden_dim: int | None = 1024,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or num_image_tokens * language_dim // 2

        self.num_image_tokens = num_image_tokens
        self.hidden = nn.Linear(vision_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_image_tokens * language_dim)

    def forward(self, features: Float[Tensor, "N Dv"]) -> Float[Tensor, "N K D"]:
        """Return K vectors for each of N images, made from the pooled features of the images."""
        hidden = torch.tanh(self.hidden(features))
        flat_embeds = self.output(hidden)
        return flat_embeds.unflatten(1, (self.num_image_tokens, -1))


class TransformerConnector(nn.Module):
    """Map the pooled vector of an image to `num_image_tokens` vectors (K) by a small transformer.

    The pooled vector becomes a few tokens. The transformer reads them together with K learned constants, and its
    outputs at the constants are the K vectors.

    Args:
        vision_dim: Width of the pooled features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Number of learned constants, and of vectors an image (K).
        hidden_dim: Width of the transformer. The published width is D, at which eight layers make 1.3 G parameters at
            7B; the default is narrower.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads; must divide `hidden_dim`.
        num_mapped_tokens: Number of tokens that the pooled vector is mapped to.

    Raises:
        ValueError: If `num_heads` does not divide `hidden_dim`.

    Reference:
        The Transformer mapping network: Mokady et al. 2021, arXiv:2111.09734, section 3.2.
    """

    consumes = "pooled"
    lr_scale = 0.25

    def __init__(
        self,
        vision_dim: int,
        language_dim: int,
        num_image_tokens: int,
        hidden_dim: int = 512,
        num_layers: int = 8,
        num_heads: int = 8,
        num_mapped_tokens: int = 10,
    ) -> None:
        super().__init__()
        _check_heads(hidden_dim, num_heads)

        self.num_image_tokens = num_image_tokens
        self.num_mapped_tokens = num_mapped_tokens
        self.input = nn.Linear(vision_dim, num_mapped_tokens * hidden_dim)
        constants = torch.randn(num_image_tokens, hidden_dim)
        self.constants = nn.Parameter(constants * hidden_dim**-0.5)

        layer = nn.TransformerEncoderLayer(
            hidden_dim,
            num_heads,
            dim_feedforward=2 * hidden_dim,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer,
            num_layers,
            norm=nn.LayerNorm(hidden_dim),
            enable_nested_tensor=False,
        )
        self.output = nn.Linear(hidden_dim, language_dim)

    def forward(self, features: Float[Tensor, "N Dv"]) -> Float[Tensor, "N K D"]:
        """Return K vectors for each of N images, made from the pooled features of the images."""
        mapped = self.input(features).unflatten(1, (self.num_mapped_tokens, -1))
        # All images share the same constants; `expand` copies nothing.
        constants = self.constants.expand(len(features), -1, -1)
        joined = torch.cat([mapped, constants], dim=1)
        attended = self.layers(joined)

        # The image embeds are read at the places of the constants; what the mapped tokens have become is dropped.
        at_constants = attended[:, self.num_mapped_tokens :]
        return self.output(at_constants)


class PatchMLPConnector(nn.Module):
    """Map each patch of an image to one vector as wide as the language model's input.

    Two linear layers with a GELU between them.

    Args:
        vision_dim: Width of the patch features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Number of patches an image (K = P). It is kept as an attribute and changes nothing;
            `build_model` puts the encoder's number of patches in place of None.
        hidden_dim: Width between the two layers; None is the published width, `language_dim`.

    Reference:
        LLaVA-1.5: Liu et al. 2023, arXiv:2310.03744, section 3.3.
    """

    consumes = "patch"

    def __init__(
        self,
        vision_dim: int,
        language_dim: int,
        num_image_tokens: int | None,
        hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or language_dim

        self.num_image_tokens = num_image_tokens
        self.hidden = nn.Linear(vision_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, language_dim)

    def forward(self, features: Float[Tensor, "N P Dv"]) -> Float[Tensor, "N P D"]:
        """Return one vector for each patch of N images, made from the features of that patch."""
        hidden = F.gelu(self.hidden(features))
        return self.output(hidden)


def _check_heads(hidden_dim: int, num_heads: int) -> None:
    """Refuse a number of attention heads that does not divide the width, with a ValueError."""
    if hidden_dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide hidden_dim={hidden_dim}")


class _HeadNorm(nn.RMSNorm):
    """An RMSNorm that computes in the dtype of its weight, as it does under autocast on CUDA but not on the CPU."""

    def forward(self, x: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        return super().forward(x.to(self.weight.dtype))


class _CrossAttentionBlock(nn.Module):
    """Pre-norm attention of queries to the patches and to each other, followed by a GELU MLP.

    Queries and keys are normalised by head, which keeps attention stable at high learning rates.

    Reference:
        Dehghani et al. 2023, arXiv:2302.05442, section 2.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

        # The order of these lines is the order of random draws and of the optimizer's parameters: keep it.
        self.norm_queries = nn.LayerNorm(dim)
        self.norm_patches = nn.LayerNorm(dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.norm_head_query = _HeadNorm(dim // num_heads)
        self.norm_head_key = _HeadNorm(dim // num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
        )

    def forward(self, queries: Float[Tensor, "N K H"], patches: Float[Tensor, "N P H"]) -> Float[Tensor, "N K H"]:
        # Queries attend to each other too, so they stand among the keys and values behind the patches.
        normed_queries = self.norm_queries(queries)
        normed_patches = self.norm_patches(patches)
        context = torch.cat([normed_patches, normed_queries], dim=1)

        query = self._split_heads(self.query(normed_queries))
        key, value = self.key_value(context).chunk(2, dim=-1)
        key = self._split_heads(key)
        value = self._split_heads(value)

        attended = F.scaled_dot_product_attention(
            self.norm_head_query(query),
            self.norm_head_key(key),
            value,
        )
        joined_heads = attended.transpose(1, 2).flatten(2)
        queries = queries + self.output(joined_heads)

        normed_queries = self.norm_mlp(queries)
        return queries + self.mlp(normed_queries)

    def _split_heads(self, vectors: Float[Tensor, "N L H"]) -> Float[Tensor, "N heads L Hhead"]:
        """Return the slice of each vector that belongs to each attention head."""
        by_position = vectors.unflatten(-1, (self.num_heads, -1))
        return by_position.transpose(1, 2)


class ResamplerConnector(nn.Module):
    """Map the patches of an image to `num_image_tokens` vectors (K): learned queries that attend to all the patches.

    Args:
        vision_dim: Width of the patch features.
        language_dim: Width of the language model's input (D).
        num_image_tokens: Number of learned queries, and of vectors an image (K).
        hidden_dim: Width of the blocks.
        num_layers: Number of cross-attention blocks.
        num_heads: Number of attention heads; must divide `hidden_dim`.

    Raises:
        ValueError: If `num_heads` does not divide `hidden_dim`.

    The connector adds no position embeddings: the patch features already hold those of the vision encoder.

    Reference:
        The Perceiver resampler: Alayrac et al. 2022, arXiv:2204.14198, section 2.1.
    """

    consumes = "patch"
    # At the whole of the published 4e-3 its attention learns nothing about the images (measured).
    lr_scale = 0.25

    def __init__(
        self,
        vision_dim: int,
        language_dim: int,
        num_image_tokens: int,
        hidden_dim: int = 512,
        num_layers: int = 2,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        _check_heads(hidden_dim, num_heads)

        self.num_image_tokens = num_image_tokens
        queries = torch.randn(num_image_tokens, hidden_dim)
        self.queries = nn.Parameter(queries * hidden_dim**-0.5)

        self.input = nn.Linear(vision_dim, hidden_dim)
        self.blocks = nn.ModuleList(_CrossAttentionBlock(hidden_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, language_dim)

    def forward(self, features: Float[Tensor, "N P Dv"]) -> Float[Tensor, "N K D"]:
        """Return K vectors for each of N images, made from the features of all patches of the image."""
        patches = self.input(features)
        queries = self.queries.expand(len(features), -1, -1)

        for block in self.blocks:
            queries = block(queries, patches)

        normed_queries = self.norm(queries)
        return self.output(normed_queries)
