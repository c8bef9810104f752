"""The torch form: the tokens of a block are gathered, go through its part of the weights, and are added where they came from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .projection import Projection


def grouped(
    x: torch.Tensor,
    probabilities: torch.Tensor,
    up: Projection,
    down: Projection,
    gate: Projection | None,
    activation: Callable[[torch.Tensor], torch.Tensor],
    active_blocks: int,
    weighted: bool,
) -> torch.Tensor:
    """As `routed_ffn`, for x (tokens, width)"""
    blocks = probabilities.shape[-1]
    size = up.weight.shape[0] // blocks
    chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    chosen.scatter_(-1, probabilities.detach().topk(active_blocks).indices, True)
    y = x.new_zeros(x.shape[0], down.weight.shape[0])
    low = None if down.lora_a is None else x.new_zeros(x.shape[0], down.lora_a.shape[0])
    for block in range(blocks):
        tokens = chosen[:, block].nonzero().squeeze(-1)
        part = slice(block * size, (block + 1) * size)
        ups = up.rows(part.start, part.stop)
        gates = None if gate is None else gate.rows(part.start, part.stop)
        downs = Projection(down.weight[:, part], None, None if low is None else down.lora_a[:, part])
        factor = 2 * probabilities[:, block] if weighted else torch.ones_like(probabilities[:, block])
        arguments = (x, factor, tokens, ups, downs, gates, activation)
        if torch.is_grad_enabled():
            added, added_low = checkpoint(one_block, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            added, added_low = one_block(*arguments)
        y = add_rows(y, tokens, added)
        low = low if low is None else add_rows(low, tokens, added_low)
    if low is not None:
        y = y + F.linear(low, down.lora_b)
    return y if down.bias is None else y + down.bias


def one_block(x, factor, tokens, up, down, gate, activation) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the block's weights give its tokens, and the coordinates of what LoRA will"""
    x, factor = x[tokens], factor[tokens].unsqueeze(-1)
    h = activation(up(x, factor)) if gate is None else activation(gate(x, factor)) * up(x, factor)
    return F.linear(h * factor, down.weight), None if down.lora_a is None else F.linear(h, down.lora_a)


def add_rows(total: torch.Tensor, rows: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """`total.index_add(0, rows, added)`, which would keep `added` for the backward pass"""
    return total.index_put((rows,), added.to(total.dtype), accumulate=True)
