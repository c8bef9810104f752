"""The two modules that SPT adds to a decoder (arXiv 2312.10365): a product quantizer, and a routed feed-forward network.

The network reads PEFT's LoRA layers on its linear ones, because a block's own weights are scaled by the router and LoRA is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_ext.ops.routed_ffn import Projection, routed_ffn


class ProductQuantizer(nn.Module):
    """Codebooks (subspaces, codewords, width) for vectors of subspaces * width channels; attention functions read `weight`."""

    def __init__(self, channels: int, d_codeword: int = 8, n_codewords: int = 16):
        super().__init__()
        if d_codeword < 1 or channels % d_codeword:
            raise ValueError(f"d_codeword={d_codeword} must divide the channels of a head, {channels}")
        if n_codewords < 1:
            raise ValueError(f"n_codewords={n_codewords} must be at least 1")
        self.weight = nn.Parameter(torch.randn(channels // d_codeword, n_codewords, d_codeword))


class RoutedFeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)), with the blocks of the hidden layer that the router chooses.

    Args:
        up, down, gate: `nn.Linear` or Transformers' `Conv1D`, taken over as they are.
        activation: elementwise.
        n_blocks: a divisor of the hidden size.
        active_blocks: blocks for each token.
        weighted: as in `routed_ffn`.
    """

    def __init__(
        self,
        up: nn.Module,
        down: nn.Module,
        gate: nn.Module | None,
        activation: Callable[[torch.Tensor], torch.Tensor],
        n_blocks: int = 4,
        active_blocks: int = 2,
        weighted: bool = True,
    ):
        super().__init__()
        hidden, width = projection(up).weight.shape
        if n_blocks < 1 or hidden % n_blocks:
            raise ValueError(f"n_blocks={n_blocks} must divide the hidden size of the feed-forward network, {hidden}")
        if not 1 <= active_blocks <= n_blocks:
            raise ValueError(f"active_blocks={active_blocks} must be between 1 and n_blocks={n_blocks}")
        self.up, self.gate, self.down = up, gate, down
        self.router = nn.Linear(width, n_blocks, device=up.weight.device, dtype=up.weight.dtype)
        self.activation = activation
        self.active_blocks, self.weighted = active_blocks, weighted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = projection(self.up), projection(self.down)
        gate = None if self.gate is None else projection(self.gate)
        options = {"activation": self.activation, "active_blocks": self.active_blocks, "weighted": self.weighted}
        return routed_ffn(x, self.router(x).sigmoid(), up, down, gate, **options)


class PositionTable(nn.Module):
    """OPT's position embeddings around a plain `nn.Embedding`, which PEFT can adapt; it would take the mask for indices otherwise."""

    def __init__(self, positions: nn.Embedding):
        super().__init__()
        self.offset = positions.offset
        weight = positions.weight
        self.table = nn.Embedding(*weight.shape, device="meta")
        self.table.weight = weight

    def forward(
        self, attention_mask: torch.Tensor, past_key_values_length: int = 0, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) * attention_mask - 1).long()[:, past_key_values_length:]
        return self.table(position_ids + self.offset)


def projection(layer: nn.Module) -> Projection:
    """The weights of a linear layer, and those of the LoRA that is active on it.

    Raises:
        ValueError: quantized weights, merged LoRA, or LoRA with dropout or of a variant such as DoRA.
    """
    lora = isinstance(layer, LoraLayer)
    base = layer.get_base_layer() if lora else layer
    if not base.weight.is_floating_point():
        raise ValueError("A routed feed-forward network takes its weights apart, so they cannot be quantized; skip it")
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    names = []
    if lora and layer.merged:
        raise ValueError("LoRA in a routed feed-forward network cannot be merged: the router scales the base alone")
    if lora and not layer.disable_adapters:
        names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return Projection(weight, base.bias)
    if layer.lora_variant or any(not isinstance(layer.lora_dropout[name], nn.Identity) for name in names):
        raise ValueError("A routed feed-forward network takes plain LoRA without dropout; set lora_dropout=0")
    lora_a = torch.cat([layer.lora_A[name].weight for name in names])
    lora_b = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], 1)
    return Projection(weight, base.bias, lora_a, lora_b)
