"""Convolutional blocks equal the plain modules that they stand for."""

import pytest
import torch
from torch import nn

from hf_ext.layers.convolution import ConvBatchNorm, PointwiseConv2d, patch_embedding


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_a_1x1_convolution(groups, bias):
    conv = PointwiseConv2d(4, 6, groups, bias)
    plain = nn.Conv2d(4, 6, 1, groups=groups, bias=bias)
    plain.load_state_dict(conv.state_dict())
    for batch in (1, 17):
        x = torch.randn(batch, 4, 5, 7)
        torch.testing.assert_close(conv(x), plain(x))


def test_the_block_pads_so_that_only_the_stride_changes_the_size():
    x = torch.zeros(2, 3, 9, 8)
    assert ConvBatchNorm(3, 4, 3)(x).shape == (2, 4, 9, 8)
    assert ConvBatchNorm(3, 4, 5, stride=2)(x).shape == (2, 4, 5, 4)


def test_a_patch_embedding_that_changes_nothing_has_no_parameters():
    assert not list(patch_embedding(8, 8).parameters())
    assert patch_embedding(8, 8, stride=2)(torch.zeros(1, 8, 5, 4)).shape == (1, 8, 3, 2)
