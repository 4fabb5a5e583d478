"""Parts with buffers, as a user's package would hold them: `plugins=[tests.support.stateful_parts]`."""

from __future__ import annotations

import torch
from torch import nn

from visllama.images.transform import ImageTransform
from visllama.model.vision_encoder import VisionEncoder, VisionFeatures


class Normed(nn.Module):
    """A connector with BatchNorm: what it says in eval mode rests on the statistics of its training."""

    consumes = "pooled"

    def __init__(self, vision_dim, language_dim, num_image_tokens):
        super().__init__()
        self.num_image_tokens = num_image_tokens
        self.norm = nn.BatchNorm1d(vision_dim)
        self.output = nn.Linear(vision_dim, num_image_tokens * language_dim)

    def forward(self, features):
        return self.output(self.norm(features)).unflatten(1, (self.num_image_tokens, -1))


class Counting(nn.Module):
    """A connector that speaks up with the number of batches that it has trained on, and counts each that it sees."""

    consumes = "pooled"

    def __init__(self, vision_dim, language_dim, num_image_tokens):
        super().__init__()
        self.num_image_tokens = num_image_tokens
        self.register_buffer("num_trained", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_seen", torch.zeros(3, dtype=torch.int64), persistent=False)
        self.output = nn.Linear(vision_dim, num_image_tokens * language_dim)

    def forward(self, features):
        self.num_seen += 1
        self.num_trained += self.training
        return self.num_trained * self.output(features).unflatten(1, (self.num_image_tokens, -1))


class SmallCNN(VisionEncoder):
    """An encoder with BatchNorm, whose published weights hold its statistics too."""

    def __init__(self, width):
        super().__init__()
        self.pooled_dim = self.patch_dim = width
        self.num_patches = 4
        self.transform = ImageTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.layers = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def load_base_weights(self, dtype):
        generator = torch.Generator().manual_seed(5)
        convolution, norm = self.layers
        for tensor in (convolution.weight, convolution.bias, norm.running_mean):
            tensor.data = torch.randn(tensor.shape, generator=generator)
        if dtype != "auto":
            self.layers.to(dtype)

    def encode(self, pixel_values):
        patches = self.layers(pixel_values).flatten(2).transpose(1, 2)
        return VisionFeatures(patches.mean(1), patches)
