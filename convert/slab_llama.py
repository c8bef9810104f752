"""The configuration of xinghaochen/SLAB's language model, which `convert/slab.py` hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hf_ext.models.slab.configuration_slab_llama import SlabLlamaConfig

# what the reference's class does not look at: it is Llama 1, whatever these say
UNUSED = (
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)
SAVED = (
    "model_type",
    "architectures",
    "auto_map",
    "torch_dtype",
    "transformers_version",
    "pretraining_tp",
    "_name_or_path",
)


def llama_config(arguments: Mapping[str, Any]) -> SlabLlamaConfig:
    """From the fields of a `LlamaConfig`; those left out have its defaults."""
    own = ("fused", "norm_warmup_steps", "norm_decay_steps", "norm_ratio", "norm_update_every")
    known = {field.name for field in fields(SlabLlamaConfig) if field.name not in own} | {*UNUSED, *SAVED}
    if unknown := arguments.keys() - known:
        raise ValueError(f"SLAB's llama has no arguments {sorted(unknown)}; it has {', '.join(sorted(known))}")
    return SlabLlamaConfig(**{name: value for name, value in arguments.items() if name not in (*UNUSED, *SAVED)})
