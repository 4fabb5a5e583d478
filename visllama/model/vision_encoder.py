"""Vision encoders behind one interface: images become one pooled vector each, and one vector for each patch."""

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
    """The features of N images.

    Attributes:
        pooled: One vector for each image.
        patch: One vector for each of the P patches of each image, without class tokens.
    """

    pooled: Float[Tensor, "N Dpooled"]
    patch: Float[Tensor, "N P Dpatch"]


class VisionEncoder(nn.Module, ABC):
    """The base class of vision encoders. A subclass sets the attributes, and defines `load_base_weights` and `encode`.

    Call an encoder as a module, on uint8 or normalised images.

    Attributes:
        pooled_dim: Width of the pooled features.
        patch_dim: Width of the patch features.
        num_patches: Number of patches an image (P).
        transform: How an image is resized and cropped for the encoder; its mean and standard deviation are applied by
            `forward`, on the device.
    """

    pooled_dim: int
    patch_dim: int
    num_patches: int
    transform: ImageTransform

    @abstractmethod
    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        """Read the published weights into this encoder; before, its parameters are on the meta device.

        Args:
            dtype: Dtype that the weights get; "auto" keeps that of their files.
        """

    @abstractmethod
    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        """Return the features of images that are already normalised and have the dtype of the parameters."""

    def forward(self, pixel_values: Num[Tensor, "N C H W"]) -> VisionFeatures:
        """Return the features of images, in the dtype of the encoder's parameters.

        Args:
            pixel_values: Images of the encoder's size. uint8 pixels are normalised by the mean and standard deviation
                of `transform`; floats have to be normalised already.
        """
        dtype = next(self.parameters()).dtype

        if pixel_values.dtype == torch.uint8:
            mean = pixel_values.new_tensor(self.transform.mean, dtype=torch.float32)
            std = pixel_values.new_tensor(self.transform.std, dtype=torch.float32)
            pixel_values = (pixel_values / 255 - mean[:, None, None]) / std[:, None, None]

        return self.encode(pixel_values.to(dtype))


class PretrainedVisionEncoder(VisionEncoder):
    """The base class of encoders that transformers has; use one of its subclasses for CLIP, SigLIP and DINOv2.

    The constructor reads config and image processor, and builds the model on the meta device; `load_base_weights` reads
    the weights. A hub id that is not in the hub's cache is downloaded.

    Args:
        path: A folder, a hub id (OWNER/NAME), or `visllama:NAME` for a small model that comes with visllama. It may
            hold the whole model (CLIP with its text half) or the vision half alone.
        revision: Commit, branch or tag of the hub id; None for its main branch.
        feature_layer: Index of the hidden state that the patch features are taken from: 0 is the input of the first
            layer, -1 the output of the last one, -2 that of the layer before it, as in LLaVA.

    Raises:
        ConfigError: If the path cannot be read, holds a model of another kind, or has no such layer.

    Class attributes, which a subclass sets:
        model_types: The values of `model_type` in the configs that the class reads.
        config_class: Class of the config in transformers.
        model_class: Class of the model in transformers.
        processor_class: Class of the image processor in transformers.
        num_class_tokens: Number of positions in a hidden state that stand before the patches.
    """

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type]
    num_class_tokens: ClassVar[int]

    def __init__(self, path: str, revision: str | None = None, feature_layer: int = -2) -> None:
        super().__init__()
        self.path = locate(path)
        self.revision = revision
        self.feature_layer = feature_layer

        config = self._read_config()
        with torch.device("meta"):
            self.model = self.model_class(config)

        processor = read(self.processor_class, self.path, revision)
        self.transform = ImageTransform.from_processor(processor)

        # CLIP projects its pooled vector into the space that it shares with texts; the others do not.
        self.pooled_dim = getattr(config, "projection_dim", config.hidden_size)
        self.patch_dim = config.hidden_size
        self.num_patches = (self.transform.size_px // config.patch_size) ** 2

    def _read_config(self) -> PreTrainedConfig:
        """Read the config, check its kind and `feature_layer`, and return it."""
        # The class of a kind would read another kind's config too, and fill in what it does not find.
        model_type = read(_AnyConfig, self.path, self.revision).get("model_type")
        if model_type not in self.model_types:
            raise ConfigError(
                f"path={self.path} holds a {model_type!r}; {type(self).__name__} reads "
                f"{' and '.join(self.model_types)}: choose the model/vision_encoder of that kind, and give it this path"
            )

        # There is one hidden state more than layers: the first one is what the first layer reads.
        config = read(self.config_class, self.path, self.revision)
        num_layers = config.num_hidden_layers
        if not -num_layers - 1 <= self.feature_layer <= num_layers:
            raise ConfigError(f"feature_layer={self.feature_layer}: the encoder has {num_layers} layers")
        return config

    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        """Read the published weights, and put a new model with them in place of the one on the meta device.

        Args:
            dtype: Dtype that the weights get; "auto" keeps that of their files, mapped from disk and not copied.

        Raises:
            ConfigError: If the weights cannot be read.
        """
        # Where the path holds a whole CLIP or SigLIP, transformers reads its vision half and leaves out the text half.
        self.model = read(self.model_class, self.path, self.revision, dtype=dtype)

    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        """Return the pooled vector of normalised images, and the patches of the hidden state `feature_layer`."""
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        hidden_state = outputs.hidden_states[self.feature_layer]
        return VisionFeatures(
            pooled=self.pooled_features(outputs),
            patch=hidden_state[:, self.num_class_tokens :],
        )

    def pooled_features(self, outputs: ModelOutput) -> Float[Tensor, "N Dpooled"]:
        """Return the pooled vector of each image, which stands for the whole image.

        Args:
            outputs: The outputs of `self.model` on the images; the vectors are their `pooler_output`.
        """
        return outputs["pooler_output"]


class _AnyConfig:
    """A class with `from_pretrained`, for `read`, that returns any model's config.json as a plain dict."""

    @staticmethod
    def from_pretrained(path: str, trust_remote_code: bool, **options: Any) -> dict:
        # `trust_remote_code` is an argument of all readers; a plain dict runs no code in any case.
        config, _ = PreTrainedConfig.get_config_dict(path, **options)
        return config


class CLIPVisionEncoder(PretrainedVisionEncoder):
    """CLIP's vision encoder. Its pooled vector is the image embedding in the space that CLIP shares with texts."""

    model_types = ("clip", "clip_vision_model")
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModelWithProjection
    processor_class = CLIPImageProcessorPil
    num_class_tokens = 1

    def pooled_features(self, outputs: ModelOutput) -> Float[Tensor, "N Dpooled"]:
        """Return the projected image embedding of each image."""
        return outputs["image_embeds"]


class SiglipVisionEncoder(PretrainedVisionEncoder):
    """SigLIP's vision encoder. Its pooled vector is that of its attention pooling; it has no class token."""

    model_types = ("siglip", "siglip_vision_model")
    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessorPil
    num_class_tokens = 0


class Dinov2VisionEncoder(PretrainedVisionEncoder):
    """DINOv2's vision encoder. Its pooled vector is its class token after the last norm."""

    model_types = ("dinov2",)
    config_class = Dinov2Config
    model_class = Dinov2Model
    processor_class = BitImageProcessorPil
    num_class_tokens = 1
