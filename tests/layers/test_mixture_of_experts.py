"""A mixture of experts over any modules."""

import pytest
import torch
from torch import nn

from hf_ext.layers.mixture_of_experts import MixtureOfExperts, load_balance, mixture_of_experts


def test_output_is_the_weighted_sum_over_the_chosen_experts():
    torch.manual_seed(0)
    x, logits, experts = torch.randn(2, 5, 8), torch.randn(2, 5, 4), torch.randn(4, 8, 8)
    best, chosen = logits.topk(2)
    expected = torch.zeros(2, 5, 8)
    for b in range(2):
        for t in range(5):
            for weight, e in zip(best[b, t].softmax(-1), chosen[b, t]):
                expected[b, t] += weight * (x[b, t] @ experts[e])
    found = mixture_of_experts(x, logits, [lambda t, e=e: t @ e for e in experts], 2)
    torch.testing.assert_close(found, expected)


def test_copies_of_a_dense_module_compute_what_it_does():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    mixture, x = MixtureOfExperts(dense, 8, num_experts=4, top_k=2), torch.randn(3, 5, 8)
    torch.testing.assert_close(mixture(x), dense(x))


def test_every_expert_and_the_router_can_learn():
    torch.manual_seed(0)
    mixture = MixtureOfExperts(nn.Linear(8, 8), 8, num_experts=3, top_k=2)
    (mixture(torch.randn(64, 8)).square().mean() + load_balance(mixture.router_logits)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixture.parameters())


def test_load_balance_is_one_when_even_and_the_number_of_experts_when_one_serves_all():
    assert load_balance(10000 * torch.eye(4)).item() == pytest.approx(1.0)
    assert load_balance(torch.tensor([[1000.0, 0, 0, 0]] * 5)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("top_k", [0, 5])
def test_impossible_top_k_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        MixtureOfExperts(nn.Linear(8, 8), 8, num_experts=4, top_k=top_k)
    with pytest.raises(ValueError, match="top_k"):
        mixture_of_experts(torch.randn(2, 8), torch.randn(2, 4), [nn.Identity()] * 4, top_k)
