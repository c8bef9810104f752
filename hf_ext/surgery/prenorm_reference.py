"""What the ViT and GPT of ZixuanJiang/pre-rmsnorm-transformer (arXiv 2305.14858) have and those of Transformers do not.

Norms without parameters; in GPT a width of heads of their own and a bias in the head; in ViT the mean over tokens before the last norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_ext.layers.mean_free import without_affine

from . import Recipe


class MeanPooledNorm(nn.Module):
    """The norm of the mean over all tokens: (batch, tokens, channels) -> (batch, 1, channels)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_states.mean(1, keepdim=True))


@dataclass
class PrenormReference(Recipe):
    """Gives `gpt2` or `vit` the form of the reference's GPT or ViT.

    Args:
        heads, head_dim: of GPT's attentions, where `head_dim` is not None; ViT has `head_dim` in its configuration.
        pool: "cls", or "mean" for ViT.
    """

    name = "prenorm_reference"
    heads: int | None = None
    head_dim: int | None = None
    pool: Literal["cls", "mean"] = "cls"

    def rebuild(self, model: Any) -> None:
        kind = model.config.model_type.removeprefix("surgical_")
        if kind not in ("gpt2", "vit"):
            raise ValueError(f"PrenormReference is for the model types gpt2 and vit, got '{kind}'")
        for name, module in list(model.named_modules()):
            if type(module) is nn.LayerNorm:
                model.set_submodule(name, without_affine(nn.LayerNorm, module))
        base = model.base_model
        if kind == "vit":
            if self.pool == "mean":
                base.layernorm = MeanPooledNorm(base.layernorm)
            return
        if hasattr(model, "lm_head"):
            model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        if self.head_dim is not None:
            width = self.heads * self.head_dim
            for block in base.h:
                attention = block.attn
                attention.num_heads, attention.head_dim, attention.split_size = self.heads, self.head_dim, width
                attention.scaling = self.head_dim**-0.5
                attention.c_attn = Conv1D(3 * width, attention.embed_dim)
                attention.c_proj = Conv1D(attention.embed_dim, width)
