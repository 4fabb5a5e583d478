"""What a vision encoder and a language model of the user's own have to be, tried before any weight is loaded."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from visllama.errors import ConfigError
from visllama.images.transform import ImageTransform
from visllama.model.vision_encoder import VisionEncoder
from visllama.plugins import example_of

_WIDTHS = ("pooled_dim", "patch_dim", "num_patches")


def try_module(module: nn.Module, *inputs: Tensor) -> Any:
    """Run a module in eval mode, on copies of its buffers: a trial leaves nothing in them."""
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module.eval(), copies, inputs)


def check_encoder(encoder: object) -> None:
    """Refuse an encoder of the user's that lacks what the model reads of it, or makes features of other shapes.

    Raises:
        ConfigError: Naming the class, what it lacks, and where there is an example.
    """
    kind = type(encoder)
    if kind.__module__.startswith("visllama."):
        return
    if not isinstance(encoder, VisionEncoder):
        raise ConfigError(
            f"model.vision_encoder: {kind.__name__} has to derive from visllama.model.vision_encoder.VisionEncoder"
            f"{example_of('vision_encoder')}"
        )
    for name in _WIDTHS:
        value = getattr(encoder, name, None)
        if not isinstance(value, Integral) or value < 1:
            raise ConfigError(
                f"model.vision_encoder: {kind.__name__}.__init__ has to set self.{name}, a whole number, and it is "
                f"{value!r}{example_of('vision_encoder')}"
            )
    if not isinstance(getattr(encoder, "transform", None), ImageTransform):
        raise ConfigError(
            f"model.vision_encoder: {kind.__name__}.__init__ has to set self.transform, as "
            f"ImageTransform(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)){example_of('vision_encoder')}"
        )
    _check_features(encoder)


@torch.no_grad()
def _check_features(encoder: VisionEncoder) -> None:
    """Run an encoder on one black image, which costs nothing where its parameters are on the meta device."""
    name = type(encoder).__name__
    parameter = next(encoder.parameters(), None)
    if parameter is None:
        raise ConfigError(f"model.vision_encoder: {name} has no parameters: it would see nothing")
    size = encoder.transform.size_px
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=parameter.device)
    try:
        features = try_module(encoder, image)
    except NotImplementedError:  # an operation that needs numbers, and on the meta device there are none
        return
    except RuntimeError as error:
        if "meta" in str(error):
            return
        raise ConfigError(
            f"model.vision_encoder: {name} fails on an image of (1, 3, {size}, {size}): {str(error).splitlines()[0]}"
        ) from error

    wanted = {"pooled": (1, encoder.pooled_dim), "patch": (1, encoder.num_patches, encoder.patch_dim)}
    for kind, shape in wanted.items():
        found = getattr(features, kind, None)
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"model.vision_encoder: {name}.encode has to return VisionFeatures(pooled=..., patch=...), and returns "
                f"a {type(features).__name__}{example_of('vision_encoder')}"
            )
        if tuple(found.shape) != shape:
            raise ConfigError(
                f"model.vision_encoder: of one image {name} makes {kind} features of shape {tuple(found.shape)}, and "
                f"its pooled_dim, patch_dim and num_patches say {shape}: mend one of them{example_of('vision_encoder')}"
            )


def check_language_model(model: object, source: object) -> None:
    """Refuse what somebody's own `build()` returns where it is no model of transformers.

    Raises:
        ConfigError: Naming the class, what it returns, and where there is an example.
    """
    name = type(source).__name__
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"model.language_model: {name}.build() has to return a PreTrainedModel of transformers, and returns a "
            f"{type(model).__name__}{example_of('language_model')}"
        )
    tokenizer = getattr(source, "tokenizer", None)
    for token in ("eos_token_id", "pad_token_id"):
        if getattr(tokenizer, token, None) is None:
            raise ConfigError(
                f"model.language_model: {name}.tokenizer has no {token}: no text could end, or stand beside a "
                f"longer one; tokenizer.pad_token = tokenizer.eos_token does for the second"
                f"{example_of('language_model')}"
            )
