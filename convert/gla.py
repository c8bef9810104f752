"""flash-linear-attention's GLA checkpoints: same names, save for the fused `mlp.gate_proj` of those saved before February 2025."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_ext.layers.recurrent_decoder import SPLIT_FUSED_GATE
from hf_ext.models.gla import GLAConfig

MODEL = "GLAForCausalLM"
RULES = [SPLIT_FUSED_GATE]
CARRIED = {"model_type", "torch_dtype", "_name_or_path"}  # a published config.json holds these beside the arguments


def config(arguments: dict[str, Any]) -> GLAConfig:
    """`GLAConfig` of the reference has the same keywords."""
    known = {field.name for field in fields(GLAConfig)}
    if unknown := set(arguments) - known - CARRIED:
        raise ValueError(f"GLAConfig has no argument {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return GLAConfig(**{name: value for name, value in arguments.items() if name in known})
