"""The fast linear layer is a linear layer."""

import pytest
import torch
from torch import nn

from hf_ext.layers.linear import TokenLinear


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 7, 6), (2, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_equal_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    fast, plain = TokenLinear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(shape)
    output, expected = fast(x), plain(x)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(fast.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_other_number_formats_work():
    layer = TokenLinear(6, 4)
    assert layer.bfloat16()(torch.randn(2, 3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 3, 6, dtype=torch.float64)).shape == (2, 3, 4)


def test_no_tokens_give_no_tokens():
    assert TokenLinear(6, 4)(torch.zeros(2, 0, 6)).shape == (2, 0, 4)
