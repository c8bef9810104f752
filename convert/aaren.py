"""Weights of a stack of Aaren blocks under the names of torch's `nn.TransformerEncoder`, with a `query` beside each layer.

The authors published no code; these are the names and arguments of this project's cases, and a torch Transformer's weights can be brought
into them.
"""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from hf_ext.models.aaren import AarenConfig

MODEL = "AarenModel"
# argument -> our field and the default
ARGUMENTS: dict[str, tuple[str, Any]] = {
    "d_model": ("hidden_size", 512),
    "nhead": ("num_attention_heads", 8),
    "num_layers": ("num_hidden_layers", 1),
    "dim_feedforward": ("intermediate_size", None),
    "activation": ("hidden_act", "relu"),
    "norm_first": ("norm_first", False),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
    "bias": ("use_bias", True),
    "dropout": ("dropout", 0.1),
}
PARTS = ("q_proj", "k_proj", "v_proj")
RULES = [
    WeightRenaming(r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    *(
        WeightConverter(
            f"self_attn.in_proj_{kind}", [f"self_attn.{part}.{kind}" for part in PARTS], operations=[Chunk(dim=0)]
        )
        for kind in ("weight", "bias")
    ),
]


def config(arguments: dict[str, Any]) -> AarenConfig:
    """
    Raises:
        ValueError: an argument that there is not.
    """
    if unknown := sorted(set(arguments) - set(ARGUMENTS)):
        raise ValueError(f"Aaren has no argument {', '.join(unknown)}; it has {', '.join(ARGUMENTS)}")
    return AarenConfig(**{field: arguments.get(name, default) for name, (field, default) in ARGUMENTS.items()})
