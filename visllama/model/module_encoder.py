"""`ModuleEncoder`: a vision encoder made of any torch module, from which a user's own class may derive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visllama.errors import ConfigError
from visllama.images.transform import ImageTransform
from visllama.model.vision_encoder import VisionEncoder, VisionFeatures


class ModuleEncoder(VisionEncoder):
    """A vision encoder made of a torch module and a safetensors file with its weights.

    Widths and number of patches are read off the shape of the module's output, which has to be one of

    - `(N, D, H, W)`, as a convolutional network makes it: each of the H * W positions is a patch;
    - `(N, P, D)`: a vector for each patch;
    - `(N, D)`: one vector an image, which is then its one patch too.

    The pooled features are the mean of the patches. The constructor runs the module once on the meta device;
    `load_base_weights` reads the weights.

    Args:
        make_module: Function without arguments that returns the module; it is called on the meta device, where tensors
            take no memory and hold no numbers.
        weights: The safetensors file with the module's `state_dict()`.
        size_px: Height and width of the images that the module takes, in pixels; images are resized and cropped to it.
        mean: Mean of each colour in the module's training data, for pixels in [0, 1].
        std: Standard deviation of each colour in the module's training data, for pixels in [0, 1].

    Raises:
        ConfigError: If the file is missing, or if the module's output has none of the three forms.
    """

    def __init__(
        self,
        make_module: Callable[[], nn.Module],
        weights: str | Path,
        size_px: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()

        self.weights = Path(weights)
        if not self.weights.is_file():
            raise ConfigError(f"weights={weights}: no such file: give the safetensors file of the module")

        # Values out of YAML come as lists.
        self.transform = ImageTransform(size_px=size_px, mean=tuple(mean), std=tuple(std))

        # On the meta device, the trial run computes shapes alone: no weights are needed for it.
        with torch.device("meta"):
            self.module = make_module().eval()
            image = torch.zeros(1, 3, size_px, size_px)
            patches = self._patches(self.module(image))
        self.num_patches = patches.shape[1]
        self.patch_dim = patches.shape[2]
        self.pooled_dim = patches.shape[2]

    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        """Read the module's weights from its file into the module.

        Args:
            dtype: Dtype that the weights are converted to; "auto" keeps that of the file.

        Raises:
            ConfigError: If the file is no safetensors, or holds other tensors than the module has.
        """
        try:
            self.module.load_state_dict(load_file(self.weights), assign=True)
        except (RuntimeError, SafetensorError) as error:
            raise ConfigError(f"weights={self.weights}: does not fit the module: {error}") from error

        if dtype != "auto":
            self.module.to(dtype)

    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        """Return the features of normalised images: each patch, and the mean over the patches as the pooled vector."""
        output = self.module(pixel_values)
        patches = self._patches(output)
        return VisionFeatures(pooled=patches.mean(1), patch=patches)

    def _patches(self, output: object) -> Float[Tensor, "N P D"]:
        """Return the module's output as one vector for each patch.

        Raises:
            ConfigError: If the output is no tensor of two, three or four dimensions.
        """
        if not isinstance(output, Tensor):
            description = type(output).__name__
        elif output.ndim == 4:
            return output.flatten(2).transpose(1, 2)
        elif output.ndim == 3:
            return output
        elif output.ndim == 2:
            return output.unsqueeze(1)
        else:
            description = str(tuple(output.shape))

        raise ConfigError(
            f"{type(self).__name__}: its module makes {description}: (N, D, H, W), (N, P, D) or (N, D) is needed"
        )
