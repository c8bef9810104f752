"""Maps and tokens."""

import pytest
import torch
from torch import nn

from hf_ext.layers.tokens import to_map, to_tokens


def test_tokens_run_row_by_row():
    tokens = to_tokens(torch.arange(6.0).view(1, 1, 2, 3))
    assert tokens.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_map_comes_back():
    feature_map = torch.randn(2, 5, 3, 4)
    assert torch.equal(to_map(to_tokens(feature_map), (3, 4)), feature_map)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_gradient_through_a_batch_norm_before_is_right(batch):
    norm, weight = nn.BatchNorm2d(24).eval(), torch.randn(batch, 6, 24)
    x = torch.randn(batch, 24, 3, 2, requires_grad=True)
    (to_tokens(norm(x)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, to_map(weight, (3, 2)) / (1 + norm.eps) ** 0.5)
