"""DeltaNet checkpoints of flash-linear-attention and of the authors (automl/unlocking_state_tracking), and the authors' Mamba.

DeltaNet: same names, save for a fused `mlp.gate_proj` in older ones and norms inside their layers under the authors' `norm_first`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightRenaming, WeightTransform

from hf_ext.layers.recurrent_decoder import SPLIT_FUSED_GATE
from hf_ext.models.deltanet import DeltaNetConfig, SignedMambaConfig

CARRIED = {"model_type", "torch_dtype", "_name_or_path"}  # a published config.json holds these beside the arguments
AUTHORS = {"chunk_size", "norm_first"}  # arguments of the authors' DeltaNet that change nothing in what it computes
AUTHORS_MODES = ("chunk", "fused_chunk", "fused_recurrent", "naive", "naive_chunk")  # ways to compute one thing
MAMBA = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "d_state": "state_size",
    "expand_factor": "expand",
    "d_conv": "conv_kernel",
    "dt_rank": "time_step_rank",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init": "time_step_init_scheme",
    "dt_scale": "time_step_scale",
    "dt_init_floor": "time_step_floor",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
    "rms_norm_eps": "layer_norm_epsilon",
    "positive_and_negative": "allow_neg_eigval",
}
MAMBA_ONLY_OFF = ("inner_layernorms", "mup")  # mambapy's additions, which the authors never use
MAMBA_KERNELS = {"pscan", "use_cuda", "base_std", "mup_base_width", "embedding_dim"}


def is_mamba(arguments: Mapping[str, Any]) -> bool:
    return "d_model" in arguments


def model_class(arguments: Mapping[str, Any]) -> str:
    return "SignedMambaForCausalLM" if is_mamba(arguments) else "DeltaNetForCausalLM"


def config(arguments: Mapping[str, Any]) -> PreTrainedConfig:
    """`DeltaNetConfig` of the references has the same keywords; Mamba is told by its `d_model`."""
    return mamba_config(arguments) if is_mamba(arguments) else deltanet_config(arguments)


def deltanet_config(arguments: Mapping[str, Any]) -> DeltaNetConfig:
    known = {field.name for field in fields(DeltaNetConfig)}
    refuse_unknown("DeltaNetConfig", arguments, known | AUTHORS, CARRIED)
    settings = {name: value for name, value in arguments.items() if name in known}
    if settings.get("attn_mode") in AUTHORS_MODES[1:]:
        settings["attn_mode"] = "chunk"
    plain = settings.get("sigmoid_shift", 0.0) == 0 and settings.get("sigmoid_pre_scale", 1.0) == 1
    if plain and settings.get("sigmoid_scale") == 2 and settings.get("use_beta", True):
        settings |= {"sigmoid_scale": 1.0, "allow_neg_eigval": True}
    return DeltaNetConfig(**settings)


def mamba_config(arguments: Mapping[str, Any]) -> SignedMambaConfig:
    refuse_unknown("the authors' MambaLM", arguments, {*MAMBA, *MAMBA_ONLY_OFF, *MAMBA_KERNELS})
    for name in MAMBA_ONLY_OFF:
        if arguments.get(name):
            raise ValueError(f"{name}={arguments[name]!r} is not part of this method; only False is allowed")
    if arguments.get("embedding_dim", arguments["d_model"]) != arguments["d_model"]:
        raise ValueError(f"embedding_dim={arguments['embedding_dim']} must equal d_model={arguments['d_model']}")
    defaults = {"conv_kernel": 1, "use_final_norm": False, "tie_word_embeddings": False}
    return SignedMambaConfig(**defaults | {MAMBA[name]: value for name, value in arguments.items() if name in MAMBA})


def refuse_unknown(owner: str, arguments: Mapping[str, Any], known: set[str], carried: set[str] = frozenset()) -> None:
    if unknown := set(arguments) - known - carried:
        raise ValueError(f"{owner} has no argument {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")


def RULES(arguments: Mapping[str, Any]) -> list[WeightTransform]:
    if is_mamba(arguments):
        return [
            WeightRenaming(r"^token_embedding\.", "backbone.embeddings."),
            WeightRenaming(r"^layers\.", "backbone.layers."),
        ]
    return [
        WeightRenaming(r"\.attn\.norm\.", ".attn_norm."),
        WeightRenaming(r"\.mlp\.norm\.", ".mlp_norm."),
        SPLIT_FUSED_GATE,
    ]
