"""Checks of a user's own vision encoder and language model, made before any weight is loaded."""

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
    """Return what a module makes of inputs in eval mode.

    It runs on copies of its buffers, so that a trial changes no statistics.
    """
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module.eval(), copies, inputs)


def check_encoder(encoder: object) -> None:
    """Refuse a user's encoder that lacks an attribute the model reads, or that makes features of other shapes.

    Raises:
        ConfigError: If it does; the message names the class, what it lacks, and where there is an example.
    """
    kind = type(encoder)
    # Our own encoders are checked by the tests, and need no trial run.
    if kind.__module__.startswith("visllama."):
        return

    name = f"model.vision_encoder: {kind.__name__}"
    example = example_of("vision_encoder")
    if not isinstance(encoder, VisionEncoder):
        raise ConfigError(f"{name} has to derive from visllama.model.vision_encoder.VisionEncoder{example}")

    for attribute in _WIDTHS:
        value = getattr(encoder, attribute, None)
        if not isinstance(value, Integral) or value < 1:
            raise ConfigError(
                f"{name}.__init__ has to set self.{attribute}, a whole number, and it is {value!r}{example}"
            )

    if not isinstance(getattr(encoder, "transform", None), ImageTransform):
        raise ConfigError(
            f"{name}.__init__ has to set self.transform, as "
            f"ImageTransform(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)){example}"
        )

    _check_features(encoder)


@torch.no_grad()
def _check_features(encoder: VisionEncoder) -> None:
    """Run an encoder on one black image and refuse features of other shapes than it announces.

    The run costs nothing where the parameters are on the meta device.
    """
    name = f"model.vision_encoder: {type(encoder).__name__}"
    example = example_of("vision_encoder")
    parameter = next(encoder.parameters(), None)
    if parameter is None:
        raise ConfigError(f"{name} has no parameters: it would see nothing")

    size = encoder.transform.size_px
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=parameter.device)
    try:
        features = try_module(encoder, image)
    # An operation that needs numbers fails on the meta device, where there are none: that says nothing of the encoder.
    except NotImplementedError:
        return
    except RuntimeError as error:
        if "meta" in str(error):
            return

        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name} fails on an image of (1, 3, {size}, {size}): {reason}") from error

    expected_shapes = {
        "pooled": (1, encoder.pooled_dim),
        "patch": (1, encoder.num_patches, encoder.patch_dim),
    }
    for kind, shape in expected_shapes.items():
        feature = getattr(features, kind, None)
        if not isinstance(feature, Tensor):
            raise ConfigError(
                f"{name}.encode has to return VisionFeatures(pooled=..., patch=...), and returns a "
                f"{type(features).__name__}{example}"
            )

        if tuple(feature.shape) != shape:
            raise ConfigError(
                f"{name} makes {kind} features of shape {tuple(feature.shape)} of one image, and its pooled_dim, "
                f"patch_dim and num_patches say {shape}: mend one of them{example}"
            )


def check_language_model(model: object, source: object) -> None:
    """Refuse a language model of the user's own that is no model of transformers, or whose tokenizer lacks a token.

    Args:
        model: The result of the source's `build()`.
        source: The object of the user's class, with its `tokenizer`.

    Raises:
        ConfigError: If it is; the message names the class, what it returns or lacks, and where there is an example.
    """
    name = f"model.language_model: {type(source).__name__}"
    example = example_of("language_model")
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"{name}.build() has to return a PreTrainedModel of transformers, and returns a "
            f"{type(model).__name__}{example}"
        )

    tokenizer = getattr(source, "tokenizer", None)
    for token in ("eos_token_id", "pad_token_id"):
        if getattr(tokenizer, token, None) is None:
            raise ConfigError(
                f"{name}.tokenizer has no {token}: without eos_token_id no text can end, and without pad_token_id no "
                f"text can be padded to the length of a longer one; tokenizer.pad_token = tokenizer.eos_token mends "
                f"the second{example}"
            )
