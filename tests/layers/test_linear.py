"""The fast way through a linear layer gives what the layer gives."""

import pytest
import torch
from torch import nn

from hf_ext.layers.linear import token_linear


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 7, 6), (2, 6), (2, 3, 4, 6), (2, 0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_equal_those_of_the_layer(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4, bias=bias), torch.randn(shape)
    results = []
    for output in (token_linear(layer, x), layer(x)):
        layer.zero_grad()
        output.square().sum().backward()
        results.append([output, *(p.grad.clone() for p in layer.parameters())])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats_work(dtype):
    assert token_linear(nn.Linear(6, 4, dtype=dtype), torch.randn(2, 3, 6, dtype=dtype)).dtype == dtype


def test_what_wraps_or_watches_the_layer_is_not_passed_by():
    layer, seen = nn.Linear(6, 4), []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    token_linear(layer, torch.randn(2, 3, 6))
    token_linear(nn.Sequential(layer), torch.randn(2, 3, 6))
    assert seen == ["hook", "hook"]


def test_what_is_in_the_place_of_a_layer_gets_three_axes():
    shapes = []
    output = token_linear(lambda tokens: shapes.append(tokens.shape) or tokens * 2, torch.ones(2, 3, 4, 6))
    assert shapes == [(2, 12, 6)] and output.shape == (2, 3, 4, 6)
