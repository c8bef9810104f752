"""What networks for super-resolution and restoration share: the mean of their images, the upsampler, the loss."""

from __future__ import annotations

import torch
from torch import nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
UPSAMPLER_WIDTH = 64


def image_mean(num_channels: int) -> torch.Tensor:
    """(num_channels, 1, 1): what is subtracted from images in [0, 1]; nothing where they are not RGB."""
    return torch.tensor(DIV2K_MEAN if num_channels == 3 else (0.0,) * num_channels).view(-1, 1, 1)


class PixelShuffleUpsampler(nn.Module):
    """Features (B, hidden_size, H, W) -> image (B, num_channels, H * upscale, W * upscale), by pixel shuffling.

    `upscale` is 3 or a power of two.
    """

    def __init__(self, hidden_size: int, num_channels: int, upscale: int):
        super().__init__()
        factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
        self.conv_before = nn.Conv2d(hidden_size, UPSAMPLER_WIDTH, 3, padding=1)
        self.activation_fn = nn.LeakyReLU()
        self.convs = nn.ModuleList(
            nn.Conv2d(UPSAMPLER_WIDTH, UPSAMPLER_WIDTH * factor**2, 3, padding=1) for factor in factors
        )
        self.shuffles = [nn.PixelShuffle(factor) for factor in factors]
        self.conv_last = nn.Conv2d(UPSAMPLER_WIDTH, num_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.activation_fn(self.conv_before(features))
        for conv, shuffle in zip(self.convs, self.shuffles):
            features = shuffle(conv(features))
        return self.conv_last(features)


def reconstruction_loss(reconstruction: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """The mean absolute error, None without `labels`; a `ValueError` where their shapes differ."""
    if labels is None:
        return None
    if labels.shape != reconstruction.shape:
        raise ValueError(
            f"`labels` must have the shape of the reconstruction, {tuple(reconstruction.shape)}, not {tuple(labels.shape)}"
        )
    return nn.functional.l1_loss(reconstruction, labels.to(reconstruction.dtype))
