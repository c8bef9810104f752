"""Upstream's encoders keep their names; the layers of bytedance/ByteTransformer become a `BertEncoder`."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, BertConfig, PretrainedConfig
from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.bert.modeling_bert import BertEncoder

# Kernels are (in, out), q, k and v behind each other
KERNELS = {
    "attr_output_kernel": "attention.output.dense.weight",
    "inter_kernel": "intermediate.dense.weight",
    "output_kernel": "output.dense.weight",
}
VECTORS = {
    "attr_output_bias": "attention.output.dense.bias",
    "attr_output_layernorm_gamma": "attention.output.LayerNorm.weight",
    "attr_output_layernorm_beta": "attention.output.LayerNorm.bias",
    "inter_bias": "intermediate.dense.bias",
    "output_bias": "output.dense.bias",
    "output_layernorm_gamma": "output.LayerNorm.weight",
    "output_layernorm_beta": "output.LayerNorm.bias",
}
QKV = [f"attention.self.{part}" for part in ("query", "key", "value")]
LAYER_RULES = [
    *(WeightRenaming(rf"\.{name}$", f".{ours}") for name, ours in VECTORS.items()),
    *(WeightConverter(f".{name}", f".{ours}", operations=[Transpose(0, 1)]) for name, ours in KERNELS.items()),
    WeightConverter("qkv_kernel", [f"{part}.weight" for part in QKV], operations=[Transpose(0, 1), Chunk(0)]),
    WeightConverter("qkv_bias", [f"{part}.bias" for part in QKV], operations=[Chunk(0)]),
]


def is_layers(arguments: dict[str, Any]) -> bool:
    return "head_num" in arguments


def RULES(arguments: dict[str, Any]) -> list:
    return LAYER_RULES if is_layers(arguments) else []


def config(arguments: dict[str, Any]) -> PretrainedConfig:
    """Upstream's configuration by `model_type`, or that of the reference's layers by `head_num`, `head_size` and `n_layers`."""
    if not is_layers(arguments):
        fields = {name: value for name, value in arguments.items() if name != "model_type"}
        return CONFIG_MAPPING[arguments["model_type"]](**fields)
    width = arguments["head_num"] * arguments["head_size"]
    return BertConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=arguments["head_num"],
        num_hidden_layers=arguments.get("n_layers", 1),
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )


def build(arguments: dict[str, Any]) -> Any:
    return BertEncoder(config(arguments)) if is_layers(arguments) else AutoModel.from_config(config(arguments))
