"""Initial values that references share."""

import torch
from torch import nn

from hf_ext.layers.initialization import init_conv_as_torch, init_linear


def test_convolutions_get_what_torch_gives_them():
    conv = nn.Conv2d(6, 8, 3, groups=2)
    torch.manual_seed(0)
    conv.reset_parameters()
    expected = [parameter.clone() for parameter in (conv.weight, conv.bias)]
    torch.manual_seed(0)
    init_conv_as_torch(conv)
    torch.testing.assert_close([conv.weight, conv.bias], expected)


def test_convolutions_without_a_bias_are_taken_too():
    conv = nn.Conv2d(6, 8, 3, bias=False)
    init_conv_as_torch(conv)
    assert conv.weight.abs().max() <= 54**-0.5


def test_linear_layers_get_the_deviation_asked_for_and_no_bias():
    torch.manual_seed(0)
    linear = nn.Linear(200, 100)
    init_linear(linear, 0.02)
    assert abs(linear.weight.std().item() - 0.02) < 0.001
    assert not linear.bias.any()
