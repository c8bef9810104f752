"""A mixture of experts over any callables: routing, dispatch, and the loss that keeps experts evenly used.

Sparsely-gated mixture of experts (arXiv 1701.06538), Switch Transformer (arXiv 2101.03961), as in "A Practical Survey on Faster and Lighter
Transformers" (arXiv 2103.14636).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn


def mixture_of_experts(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    top_k: int,
) -> torch.Tensor:
    """sum over the `top_k` experts of greatest logit: softmax over those logits, times expert(x). Each expert sees its own tokens only.

    Args:
        x: (..., channels).
        router_logits: (..., experts).
        top_k: 1 to the number of experts.
    """
    if router_logits.shape != (*x.shape[:-1], len(experts)) or not 1 <= top_k <= len(experts):
        raise ValueError(
            f"router_logits are (..., {len(experts)} experts) for x (..., channels), top_k 1 to {len(experts)}; got "
            f"{tuple(router_logits.shape)}, {tuple(x.shape)} and {top_k}"
        )
    tokens = x.flatten(0, -2)
    best, chosen = router_logits.flatten(0, -2).topk(top_k)
    weights = best.softmax(-1).to(x.dtype)
    output = None
    for number, expert in enumerate(experts):
        rows, places = (chosen == number).nonzero(as_tuple=True)
        part = expert(tokens[rows]) * weights[rows, places, None]
        output = part.new_zeros(len(tokens), part.shape[-1]) if output is None else output
        output = output.index_add(0, rows, part)
    return output.unflatten(0, x.shape[:-1])


def load_balance(router_logits: torch.Tensor) -> torch.Tensor:
    """E sum_e f_e p_e, f_e the share of tokens whose first choice is e, p_e the mean probability: 1 when even (arXiv 2101.03961, eq. 4)

    Args:
        router_logits: (..., E).
    """
    logits = router_logits.flatten(0, -2).float()
    number = logits.shape[-1]
    share = F.one_hot(logits.argmax(-1), number).float().mean(0)
    return number * (share * logits.softmax(-1).mean(0)).sum()


class MixtureOfExperts(nn.Module):
    """Copies of a dense module behind a router: what it computes is unchanged until training moves the copies apart ("sparse upcycling",
    arXiv 2212.05055).

    Args:
        dense: (..., channels) -> (..., channels).
        channels: what enters it.
    """

    def __init__(self, dense: nn.Module, channels: int, num_experts: int, top_k: int = 2):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be 1 to num_experts = {num_experts}, got {top_k}")
        self.top_k = top_k
        self.router = nn.Linear(channels, num_experts, bias=False)
        self.experts = nn.ModuleList(deepcopy(dense) for _ in range(num_experts))
        self.router_logits: torch.Tensor | None = None  # of the last call, for `load_balance`

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.router_logits = self.router(hidden_states)
        return mixture_of_experts(hidden_states, self.router_logits, self.experts, self.top_k)
