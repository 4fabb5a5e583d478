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
    """Run a module once on inputs, without changing its buffers, and return its output.

    The module is put into eval mode and stays in it: the caller has to put the mode back. The run uses copies of the
    buffers, so that a counter or a statistic does not change. Gradients are recorded as usual.
    """
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module.eval(), copies, inputs)


def check_encoder(encoder: object) -> None:
    """Check that a user's own vision encoder has what `VisLlama` needs; visllama's own encoders are not checked.

    The encoder has to derive from `VisionEncoder`, set `pooled_dim`, `patch_dim` and `num_patches` (whole numbers, 1 or
    more) and `transform`, have parameters, and return features of these sizes on one black image. The features are not
    checked, and nothing is raised, if an operation of the encoder cannot run on the meta device (shapes, no numbers).

    Raises:
        ConfigError: If the encoder breaks one of these rules; the message names its class and the rule.
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
    """Run an encoder on one black image, and refuse features of other shapes than its attributes say.

    The run costs nothing if the parameters are on the meta device.

    Raises:
        ConfigError: If the shapes differ, the run fails, or the encoder has no parameters.
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
    """Check that a language model is a `PreTrainedModel`, and that its tokenizer has an end and a padding token.

    Args:
        model: What `source.build()` has returned.
        source: The object that the language model comes from (a `LanguageModelSource`), with its `tokenizer`.

    Raises:
        ConfigError: If `model` is of another class, or a token is missing; the message names the class of `source`,
            what is wrong, and where there is an example.
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
