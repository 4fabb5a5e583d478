"""Frozen vision encoders behind one interface: `pixel_values -> (pooled_features, patch_features)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import ModelOutput

from visllama.errors import ConfigError
from visllama.images.transform import ImageTransform
from visllama.model.locate import locate
from visllama.model.pretrained import read


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
    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        """Load the published weights, as stored with "auto"; until then the parameters are on the meta device."""

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


class PretrainedVisionEncoder(VisionEncoder):
    """An encoder of transformers' own, by name: built from its config first, its weights loaded on demand.

    Args:
        path: A folder, a hub id, or `visllama:NAME` (see `model.locate`), with the whole model or its vision half.
        revision: Commit of the hub id.
        feature_layer: Which hidden state gives the patch features; -2 is the penultimate, as in LLaVA.

    Raises:
        ConfigError: If the path holds a model of another kind, or has no such layer.
    """

    model_types: ClassVar[tuple[str, ...]]
    """What `model_type` says in the configs that this class reads."""
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type]
    num_class_tokens: ClassVar[int]
    """Tokens before the patches in a hidden state."""

    def __init__(self, path: str, revision: str | None = None, feature_layer: int = -2) -> None:
        super().__init__()
        self.path, self.revision, self.feature_layer = locate(path), revision, feature_layer
        config = self._read_config()
        with torch.device("meta"):
            self.model = self.model_class(config)
        self.transform = ImageTransform.from_processor(read(self.processor_class, self.path, revision))
        self.pooled_dim, self.patch_dim = getattr(config, "projection_dim", config.hidden_size), config.hidden_size
        self.num_patches = (self.transform.size_px // config.patch_size) ** 2

    def _read_config(self) -> PreTrainedConfig:
        found, name = read(_AnyConfig, self.path, self.revision), type(self).__name__
        if found.get("model_type") not in self.model_types:
            raise ConfigError(
                f"path={self.path} holds a {found.get('model_type')!r}; {name} reads {' and '.join(self.model_types)}: "
                f"choose the model/vision_encoder of that kind, and give it this path"
            )
        config = read(self.config_class, self.path, self.revision)
        if not -config.num_hidden_layers - 1 <= self.feature_layer <= config.num_hidden_layers:
            raise ConfigError(f"feature_layer={self.feature_layer}: the encoder has {config.num_hidden_layers} layers")
        return config

    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        # Of a whole CLIP or SigLIP, the text half is rightly left out.
        self.model = read(self.model_class, self.path, self.revision, dtype=dtype)

    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        return VisionFeatures(
            self.pooled_features(outputs), outputs.hidden_states[self.feature_layer][:, self.num_class_tokens :]
        )

    def pooled_features(self, outputs: ModelOutput) -> Float[Tensor, "N Dpooled"]:
        """Return the one vector that the encoder itself makes of an image."""
        return outputs.pooler_output


class _AnyConfig:
    """A model's config.json as it stands."""

    @staticmethod
    def from_pretrained(path: str, trust_remote_code: bool, **options: Any) -> dict:
        return PreTrainedConfig.get_config_dict(path, **options)[0]


class CLIPVisionEncoder(PretrainedVisionEncoder):
    """CLIP's vision tower: the embedding that it shares with its texts, and one hidden layer's patches."""

    model_types = ("clip", "clip_vision_model")
    config_class, model_class, processor_class = CLIPVisionConfig, CLIPVisionModelWithProjection, CLIPImageProcessorPil
    num_class_tokens = 1

    def pooled_features(self, outputs: ModelOutput) -> Float[Tensor, "N Dpooled"]:
        return outputs.image_embeds


class SiglipVisionEncoder(PretrainedVisionEncoder):
    """SigLIP's vision tower: its attention-pooled vector, and one hidden layer's patches; there is no class token."""

    model_types = ("siglip", "siglip_vision_model")
    config_class, model_class, processor_class = SiglipVisionConfig, SiglipVisionModel, SiglipImageProcessorPil
    num_class_tokens = 0


class Dinov2VisionEncoder(PretrainedVisionEncoder):
    """DINOv2: its class token, and one hidden layer's patches."""

    model_types = ("dinov2",)
    config_class, model_class, processor_class = Dinov2Config, Dinov2Model, BitImageProcessorPil
    num_class_tokens = 1
