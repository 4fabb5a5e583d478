"""A vision encoder out of any torch module: what a class of the user's own derives from."""

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
    """A frozen encoder out of a torch module and a file with its weights.

    The module's output on one image tells the widths and the number of patches. It is one of

    - a map `(N, D, H, W)`, as a convolutional network makes: each of its H * W places is a patch;
    - `(N, P, D)`: a vector for each patch;
    - `(N, D)`: one vector an image, which is then its one patch too.

    The pooled features are the mean of the patches.

    Args:
        make_module: It builds the module; it is called where tensors take no memory.
        weights: The safetensors file with the module's `state_dict()`.
        size_px: Height and width of the images that the module takes.
        mean, std: The mean and standard deviation of its training data, for pixels in [0, 1].

    Raises:
        ConfigError: If the file is not there, or the module's output is none of the three.
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
        self.transform = ImageTransform(size_px=size_px, mean=tuple(mean), std=tuple(std))
        with torch.device("meta"):
            self.module = make_module().eval()
            patches = self._patches(self.module(torch.zeros(1, 3, size_px, size_px)))
        self.num_patches = patches.shape[1]
        self.patch_dim = patches.shape[2]
        self.pooled_dim = patches.shape[2]

    def load_base_weights(self, dtype: torch.dtype | Literal["auto"]) -> None:
        """Load the module's weights; as they are stored with "auto".

        Raises:
            ConfigError: If the file holds other tensors than the module has.
        """
        try:
            self.module.load_state_dict(load_file(self.weights), assign=True)
        except (RuntimeError, SafetensorError) as error:
            raise ConfigError(f"weights={self.weights}: does not fit the module: {error}") from error
        if dtype != "auto":
            self.module.to(dtype)

    def encode(self, pixel_values: Float[Tensor, "N C H W"]) -> VisionFeatures:
        patches = self._patches(self.module(pixel_values))
        return VisionFeatures(pooled=patches.mean(1), patch=patches)

    def _patches(self, output: Tensor) -> Float[Tensor, "N P D"]:
        dimensions = output.ndim if isinstance(output, Tensor) else None
        if dimensions == 4:
            return output.flatten(2).transpose(1, 2)
        if dimensions == 3:
            return output
        if dimensions == 2:
            return output.unsqueeze(1)
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"{type(self).__name__}: its module makes {found}: (N, D, H, W), (N, P, D) or (N, D) is needed"
        )
