"""Convolutional blocks of hybrid backbones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN

from .fusion import fuse_conv_batchnorm


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that is fast on one CPU thread too.

    There torch takes 1x1 convolutions of small batches to its oldest implementation, unless they are dilated; dilation means
    nothing to a kernel of one pixel. Measured on one thread of an EPYC: 1.5 times (batch 1) to 1.8 times (batch 8) the speed for
    the whole of Next-ViT-S.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        return nn.functional.conv2d(
            hidden_states, self.weight, self.bias, dilation=2 if on_cpu else 1, groups=self.groups
        )


class ConvBatchNorm(nn.Module):
    """Convolution, padded by half its kernel, then BatchNorm and an activation. (B, in, H, W) -> (B, out, H / stride, W / stride)

    `fuse()` folds the norm into the convolution, which then has a bias; the names stay.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        hidden_act: str | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        if (kernel_size, stride) == (1, 1):
            self.conv = PointwiseConv2d(in_channels, out_channels, groups, bias)
        else:
            padding = kernel_size // 2
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)
        self.activation_fn = ACT2FN[hidden_act] if hidden_act else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation_fn(self.norm(self.conv(hidden_states)))

    def fuse(self) -> nn.Module:
        self.conv, self.norm = fuse_conv_batchnorm(self.conv, self.norm), nn.Identity()
        return self


class PooledPatchEmbedding(ConvBatchNorm):
    """Average pooling where `stride` is 2, then a 1x1 convolution and BatchNorm (Next-ViT's patch embedding).

    (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)); windows that stick out average real pixels only.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, eps: float = 1e-5):
        super().__init__(in_channels, out_channels, eps=eps)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pool(hidden_states))


def patch_embedding(in_channels: int, out_channels: int, stride: int = 1, eps: float = 1e-5) -> nn.Module:
    """`PooledPatchEmbedding`, or nothing where neither size nor width changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PooledPatchEmbedding(in_channels, out_channels, stride, eps)


class ConvStem(nn.Sequential):
    """Four 3x3 convolutions, the last as wide as the third. (B, channels, H, W) -> (B, widths[2], H / 4, W / 4)"""

    def __init__(self, num_channels: int, widths: Sequence[int], hidden_act: str, eps: float = 1e-5):
        sizes = (num_channels, *widths, widths[-1])
        super().__init__(
            *(
                ConvBatchNorm(*pair, 3, stride, hidden_act=hidden_act, eps=eps)
                for *pair, stride in zip(sizes, sizes[1:], (2, 1, 1, 2))
            )
        )
