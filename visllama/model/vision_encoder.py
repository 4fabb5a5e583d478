"""Frozen vision encoders behind one interface: `pixel_values -> (pooled_features, patch_features)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from visllama.data.images import ImageTransform
from visllama.model.pretrained import locate, quietly


class VisionFeatures(NamedTuple):
    pooled: Float[Tensor, "N Dpooled"]
    patch: Float[Tensor, "N P Dpatch"]


class VisionEncoder(nn.Module, ABC):
    """A frozen encoder of images.

    Attributes:
        pooled_dim, patch_dim: Widths of the two kinds of features.
        num_patches: Patches an image (P).
        transform: What an image goes through before it arrives here; its mean and std are applied here, on the device.
    """

    pooled_dim: int
    patch_dim: int
    num_patches: int
    transform: ImageTransform

    @abstractmethod
    def load_base_weights(self, dtype: torch.dtype) -> None:
        """Load the published weights; until then the parameters are shapes on the meta device."""

    @abstractmethod
    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures: ...

    def forward(self, pixel_values: Num[Tensor, "N C H W"]) -> VisionFeatures:
        """Encode images: uint8 pixels are normalised first, floats are taken as normalised already."""
        dtype = next(self.parameters()).dtype
        if pixel_values.dtype == torch.uint8:
            mean, std = (
                pixel_values.new_tensor(v, dtype=torch.float32) for v in (self.transform.mean, self.transform.std)
            )
            pixel_values = (pixel_values / 255 - mean[:, None, None]) / std[:, None, None]
        return self.encode(pixel_values.to(dtype))


class CLIPVisionEncoder(VisionEncoder):
    """CLIP's vision tower: the projected embedding, and one hidden layer's patches.

    Args:
        path: A folder, a hub id, or `visllama:NAME` (see `pretrained.locate`), with a whole CLIP or its vision half.
        revision: Commit of the hub id.
        feature_layer: Which hidden state gives the patch features; -2 is the penultimate, as in LLaVA.
    """

    def __init__(self, path: str, revision: str | None = None, feature_layer: int = -2) -> None:
        super().__init__()
        self.path, self.revision, self.feature_layer = locate(path), revision, feature_layer
        config = CLIPVisionConfig.from_pretrained(self.path, revision=revision)
        with torch.device("meta"):
            self.model = CLIPVisionModelWithProjection(config)
        self.pooled_dim, self.patch_dim = config.projection_dim, config.hidden_size
        self.num_patches = (config.image_size // config.patch_size) ** 2
        self.transform = ImageTransform.from_processor(
            CLIPImageProcessorPil.from_pretrained(self.path, revision=revision)
        )

    def load_base_weights(self, dtype: torch.dtype) -> None:
        # Quietly: of a whole CLIP, the text half is rightly left out.
        with quietly():
            self.model = CLIPVisionModelWithProjection.from_pretrained(self.path, revision=self.revision, dtype=dtype)

    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        return VisionFeatures(outputs.image_embeds, outputs.hidden_states[self.feature_layer][:, 1:])
