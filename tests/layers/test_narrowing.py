"""Narrowed layers compute what the whole ones compute of the channels that stay."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_ext.layers.narrowing import Constant, channels_of, keep_channels, keep_inputs, keep_outputs, widths

INDEX = [1, 4, 2]
LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "no bias": lambda: nn.Linear(6, 5, bias=False),
    "conv1d": lambda: Conv1D(5, 6),
}
layers = pytest.mark.parametrize("name", LAYERS)


@layers
def test_kept_outputs_are_those_of_the_whole_layer(name):
    layer, x = LAYERS[name](), torch.randn(2, 3, 6)
    expected = layer(x)[..., INDEX]
    keep_outputs(layer, INDEX)
    assert widths(layer) == (6, 3)
    torch.testing.assert_close(layer(x), expected)


@layers
def test_kept_inputs_add_up_as_if_the_others_were_zero(name):
    layer, x = LAYERS[name](), torch.randn(2, 3, 6)
    mask = torch.zeros(6).index_fill_(0, torch.tensor(INDEX), 1)
    expected = layer(x * mask)
    keep_inputs(layer, INDEX)
    assert widths(layer) == (3, 5)
    torch.testing.assert_close(layer(x[..., INDEX]), expected)


@layers
def test_without_inputs_the_bias_is_left(name):
    layer = LAYERS[name]()
    torch.testing.assert_close(Constant(layer)(torch.randn(2, 3, 9)), layer(torch.zeros(2, 3, 6)))


def test_depthwise_convolution_keeps_channels():
    layer, x = nn.Conv2d(5, 5, 3, padding=1, groups=5), torch.randn(1, 5, 4, 4)
    expected = layer(x)[:, INDEX]
    keep_channels(layer, INDEX)
    torch.testing.assert_close(layer(x[:, INDEX]), expected)


def test_frozen_weights_stay_frozen_and_keep_their_dtype():
    layer = nn.Linear(6, 5).bfloat16().requires_grad_(False)
    keep_outputs(layer, INDEX)
    assert not layer.weight.requires_grad and layer.weight.dtype == torch.bfloat16


def test_units_of_stacked_parts_are_found_in_each():
    assert channels_of([0, 2], count=3, channels=6) == [0, 1, 4, 5]
    assert channels_of([1], count=2, channels=12, parts=3) == [2, 3, 6, 7, 10, 11]
