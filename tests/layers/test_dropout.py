"""Dropout by shared random words does what torch's does."""

import pytest
import torch

from hf_ext.layers.dropout import Dropout


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_that_share_is_lost_and_the_mean_is_kept(p):
    outputs = Dropout(p)(torch.ones(1000, 999))
    assert (outputs == 0).float().mean().item() == pytest.approx(p, abs=3e-3)
    assert outputs.mean().item() == pytest.approx(1, abs=2e-2)


def test_neighbours_are_independent():
    """Four entries share a draw: each pair of them is lost together as often as chance has it."""
    lost = (Dropout(0.5)(torch.ones(200_000, 4)) == 0).float()
    torch.testing.assert_close(
        lost.mT @ lost / len(lost), torch.full((4, 4), 0.25) + 0.25 * torch.eye(4), atol=0.01, rtol=0
    )


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(50, 3, requires_grad=True)
    outputs = Dropout(0.3)(x)
    outputs.sum().backward()
    torch.testing.assert_close(x.grad * x, outputs)


def test_a_seed_gives_the_same_again():
    x = torch.ones(7, 9)
    torch.manual_seed(1)
    first = Dropout(0.3)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.3)(x), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    assert Dropout(0.3)(torch.ones(5, 7, dtype=dtype)).dtype == dtype


def test_nothing_is_lost_in_evaluation_nor_without_a_probability():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
