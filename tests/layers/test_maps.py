"""Maps and tokens are two views of the same memory."""

import torch
from torch import nn

from hf_ext.layers.maps import as_map, as_tokens


def test_there_and_back_gives_the_same_map_without_a_copy():
    feature_map = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    again = as_map(as_tokens(feature_map), (4, 5))
    assert torch.equal(again, feature_map) and again.data_ptr() == feature_map.data_ptr()
    assert torch.equal(as_tokens(feature_map)[1, 7], feature_map[1, :, 1, 2])


def test_a_batch_of_one_keeps_the_usual_strides():
    tokens = torch.randn(1, 20, 3)
    assert as_map(tokens, (4, 5)).stride() == (60, 1, 15, 3)
    assert as_tokens(as_map(tokens, (4, 5))).stride() == (60, 3, 1)


def test_as_a_gradient_a_map_of_one_image_is_right_for_batchnorm():
    norm, weights = nn.BatchNorm2d(8).eval(), torch.randn(1, 4, 8)
    images = torch.randn(1, 8, 2, 2, requires_grad=True)
    (norm(images) * as_map(weights, (2, 2))).sum().backward()
    expected = as_map(weights, (2, 2)) * (norm.running_var + norm.eps).rsqrt().view(-1, 1, 1)
    torch.testing.assert_close(images.grad, expected)
