"""facebookresearch/mega with its moving average replaced by convolutions -> TCNCAForCausalLM, or one of its parts.

The authors of TCNCA published no code; `arguments` and names are those of this project's cases. What the weights are of, a language model,
a gated attention or a stack of convolutions, shows in their names. The moving average of a MEGA checkpoint has no counterpart: its tensors
(`move.delta`, `move.alpha` ...) are left over and the conversion is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming

from hf_ext.models.tcnca import TCNCAConfig, TCNCAForCausalLM, TCNCAGatedAttention, TemporalConvolution

from .operations import Reshape

# argument -> our field and the default
ARGUMENTS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 256),
    "pad_token_id": ("pad_token_id", None),
    "hidden_size": ("hidden_size", 512),
    "z_dim": ("z_dim", 128),
    "v_dim": ("v_dim", 1024),
    "ffn_dim": ("intermediate_size", 1024),
    "num_layers": ("num_hidden_layers", 12),
    "chunk_size": ("chunk_size", 2048),
    "rel_pos_bias": ("rel_pos_bias", "rotary"),
    "max_positions": ("max_position_embeddings", 1024),
    "attention_activation": ("attention_activation", "softmax"),
    "kernel_size": ("kernel_size", 17),
    "dilation_factor": ("dilation_factor", 8),
    "depth": ("depth", 4),
    "layers_per_block": ("layers_per_block", 1),
    "tcn_activation": ("tcn_activation", "relu"),
    "final_norm_affine": ("final_norm_affine", False),
    "causal": ("causal", True),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "hidden_dropout": ("hidden_dropout", 0.0),
    "feature_dropout": ("feature_dropout", False),
}
IGNORE = ["*_float_tensor"]  # MEGA's note of a device


def config(arguments: Mapping[str, Any]) -> TCNCAConfig:
    """
    Raises:
        ValueError: an argument that there is not.
    """
    if unknown := sorted(set(arguments) - set(ARGUMENTS)):
        raise ValueError(f"TCNCA has no argument {', '.join(unknown)}; it has {', '.join(ARGUMENTS)}")
    return TCNCAConfig(**{field: arguments.get(name, default) for name, (field, default) in ARGUMENTS.items()})


def complete(arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The configuration, and what the weights are of"""
    parts = {"gamma": TCNCAGatedAttention, "omega": TemporalConvolution}
    part = next((part for name, part in parts.items() if name in state_dict), TCNCAForCausalLM)
    return {"config": config(arguments), "class": part}


def build(arguments: Mapping[str, Any]) -> nn.Module:
    return arguments["class"](arguments["config"])


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    """One tensor of all the stack's convolutions; where there is a language model around it, names change too."""
    own, part = arguments["config"], arguments["class"]
    sizes = (own.depth, own.layers_per_block, own.hidden_size)
    places = [f"convs.{block}.{layer}" for block in range(own.depth) for layer in range(own.layers_per_block)]
    prefix = "" if part is TemporalConvolution else "tcn."
    stacks = [
        WeightConverter(
            [f"{prefix}{place}.{kind}" for place in places], f"{prefix}{kind}", [Concatenate(0), Reshape(shape)]
        )
        for kind, shape in (("weight", (*sizes, own.kernel_size)), ("bias", sizes))
    ]
    renamings = {
        r"\.mega_layer\.": ".attention.",
        r"\.nffn\.": ".mlp.",
        r"(^|\.)norm\.norm\.": r"\1norm.",
        r"(^|\.)move\.": r"\1tcn.",
    }
    if part is TCNCAForCausalLM:
        renamings |= {r"^final_norm\.norm\.": "norm.", r"^(embed_tokens|layers|norm)\.": r"model.\1."}
    return [*(WeightRenaming(*pair) for pair in renamings.items()), *stacks]
