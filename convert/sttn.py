"""Checkpoints of xumingxingsjtu/STTN (TensorFlow 1, the residual form) and of LibCity's STTN (the gated form).

`arguments` with `n_route` mean the residual form, with `embed_dim` the gated one; without either the tensors' names tell. TensorFlow
checkpoints are dicts of arrays by variable name, as `tf.train.load_checkpoint` gives them; save that dict as .safetensors.
LibCity's arguments are those of its config and data feature; the number of sensors comes from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, WeightTransform

from hf_ext.models.sttn import STTNConfig

from .operations import Flatten, Kernel, Reshape, only_tensor

MODEL = "STTNForPrediction"
IGNORE = ["*/RMSProp*", "global_step*"]  # TensorFlow's optimizer slots and step counter

RESIDUAL_DEFAULTS = {"n_route": 228, "n_his": 12, "ks": 3, "blocks": [[64, 64]]}
GATED_DEFAULTS = {
    "embed_dim": 64,
    "num_layers": 3,
    "num_heads": 2,
    "TG_in_one_day": 288,
    "forward_expansion": 4,
    "dropout_rate": 0,
    "input_window": 12,
    "output_window": 12,
    "feature_dim": 1,
    "output_dim": 1,
    "num_nodes": None,
}
IGNORED = frozenset({"batch_size", "epoch", "graph", "inf_mode", "keep_prob", "lr", "n_pred", "opt", "save"})
SPACE_TABLE = "transformer.encoder.layers.0.STransformer.D_S"


class SplitKernel(ConversionOps):
    """A kernel over parts of these sizes becomes a Linear's weight for each; polynomials go from behind the channel to before it."""

    def __init__(self, sizes: list[int], order: int = 1):
        self.sizes, self.order = sizes, order

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        kernel = only_tensor(input_dict)
        kernel = kernel.reshape(-1, self.order, kernel.shape[-1])  # (channels, order, out)
        parts = kernel.split(self.sizes)
        return {name: part.permute(2, 1, 0).flatten(1).contiguous() for name, part in zip(target_patterns, parts)}


def complete(arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments, with the form, the number of sensors and the kind of skip path that only the weights tell."""
    arguments = dict(arguments)
    if not is_residual(arguments) and "embed_dim" not in arguments and "aggregation/w1" in state_dict:
        arguments["n_route"] = state_dict["b2_output_layer"].shape[0]
    if not is_residual(arguments):
        return {"num_nodes": len(state_dict[SPACE_TABLE])} | arguments if SPACE_TABLE in state_dict else arguments
    narrow = [index for index, sizes, width in _spatial_sizes(arguments) if sum(sizes) < width]
    mapped = any(f"stn_block_{index}_spatial/ws_input" in state_dict for index in narrow)
    return arguments | {"skip_projection": "different" if mapped else "wider"}


def config(arguments: Mapping[str, Any]) -> STTNConfig:
    """
    Raises:
        ValueError: an argument that neither form has, or a gated form without its number of sensors.
    """
    residual = is_residual(arguments)
    known = RESIDUAL_DEFAULTS | {"skip_projection": "wider"} if residual else GATED_DEFAULTS
    if unknown := sorted(set(arguments) - set(known) - IGNORED):
        form = "residual" if residual else "gated"
        raise ValueError(f"STTN's {form} form has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    given = known | dict(arguments)
    if residual:
        return STTNConfig(
            num_nodes=given["n_route"],
            context_length=given["n_his"],
            chebyshev_order=given["ks"],
            blocks=given["blocks"],
            skip_projection=given["skip_projection"],
        )
    if given["num_nodes"] is None:
        raise ValueError("The gated form needs `num_nodes`, the number of sensors; it comes from the weights otherwise")
    return STTNConfig(
        form="gated",
        num_nodes=given["num_nodes"],
        context_length=given["input_window"],
        prediction_length=given["output_window"],
        num_input_channels=given["feature_dim"],
        num_output_channels=given["output_dim"],
        hidden_size=given["embed_dim"],
        num_hidden_layers=given["num_layers"],
        num_attention_heads=given["num_heads"],
        mlp_ratio=given["forward_expansion"],
        steps_per_day=given["TG_in_one_day"],
        dropout=given["dropout_rate"],
    )


def is_residual(arguments: Mapping[str, Any]) -> bool:
    return bool(set(arguments) & set(RESIDUAL_DEFAULTS))


def RULES(arguments: Mapping[str, Any]) -> list[WeightTransform]:
    return residual_rules(RESIDUAL_DEFAULTS | dict(arguments)) if is_residual(arguments) else GATED_RULES


def residual_rules(given: Mapping[str, Any]) -> list[WeightTransform]:
    rules = [*RESIDUAL_NAMES, *(WeightConverter(name, name, [Kernel()]) for name in RESIDUAL_KERNELS)]
    joint_norm = Reshape((given["n_route"], -1))  # (1, 1, sensors, channels) -> (sensors, channels)
    rules += [WeightConverter(rf"\.norm\.{name}", f".norm.{name}", [joint_norm]) for name in ("weight", "bias")]

    def split(module: str, sizes: list[int], order: int = 1) -> WeightConverter:
        targets = [f"{module}.parts.{part}.weight" for part in range(len(sizes))]
        return WeightConverter(f"{module}.weight", targets, [SplitKernel(sizes, order)])

    for index, sizes, width in _spatial_sizes(given):
        layer = f"model.layers.{index}"
        rules += [split(f"{layer}.spatial.{module}", sizes) for module in ("skip", "input_projection")]
        rules.append(split(f"{layer}.spatial.graph_convolution", sizes, given["ks"]))
        rules += [split(f"{layer}.{module}", [width, given["n_his"]]) for module in ("skip", "input_projection")]
    return rules


def _spatial_sizes(arguments: Mapping[str, Any]) -> list[tuple[int, list[int], int]]:
    """For each block its index, the widths of value, space row and time row, and the width they are mapped to."""
    given = RESIDUAL_DEFAULTS | dict(arguments)
    values = [STTNConfig.embedding_size, *(block[1] for block in given["blocks"])]
    return [
        (index, [value, given["n_route"], given["n_his"]], block[0])
        for index, (value, block) in enumerate(zip(values, given["blocks"]))
    ]


RESIDUAL_KERNELS = (
    "embeddings.weight",
    *(f"attention.{name}_proj.weight" for name in "qkvo"),
    ".fc1.weight",
    ".fc2.weight",
    "time_convolution.weight",
)
RESIDUAL_NAMES = [
    WeightRenaming(source, target)
    for source, target in (
        (r":0$", ""),
        (r"^aggregation/w1$", "model.embeddings.weight"),
        (r"^aggregation/b1$", "model.embeddings.bias"),
        (r"^stn_block_(\d+)_spatial/", r"model.layers.\1.spatial."),
        (r"^stn_block_(\d+)_temporal/", r"model.layers.\1."),
        (r"temporal_embeddings?/temporal_position_embeddings", "time_table"),
        (r"spatial_embeddings/spatial_position_embeddings", "space_table"),
        (r"encoder/layer_0/", "layer_0/"),
        (r"layer_0/transformer/ws_input", "input_projection.weight"),
        (r"ws_input$", "skip.weight"),
        (r"\.ws$", ".graph_convolution.weight"),
        (r"\.bs$", ".graph_convolution.parts.0.bias"),
        (r"layer_0/attention/self/query/", "layer.attention.q_proj/"),
        (r"layer_0/attention/self/key/", "layer.attention.k_proj/"),
        (r"layer_0/attention/self/value/", "layer.attention.v_proj/"),
        (r"layer_0/attention/output/dense/", "layer.attention.o_proj/"),
        (r"layer_0/attention/output/LayerNorm/", "layer.attention_norm/"),
        (r"layer_0/intermediate/dense/", "layer.fc1/"),
        (r"layer_0/output/dense/", "layer.fc2/"),
        (r"layer_0/output/LayerNorm/", "layer.mlp_norm/"),
        (r"^layer_norm_(\d+)/", r"model.layers.\1.norm/"),
        (r"^layer_norm_output_layer/", "head.norm/"),
        (r"/(kernel|gamma)$", ".weight"),
        (r"/(bias|beta)$", ".bias"),
        (r"^temporal_transformer_decoder/wt$", "head.time_convolution.weight"),
        (r"^temporal_transformer_decoder/bt$", "head.time_convolution.bias"),
        (r"^w1_output_layer$", "head.fc1.weight"),
        (r"^b1_output_layer$", "head.fc1_bias"),
        (r"^w2_output_layer$", "head.fc2.weight"),
        (r"^b2_output_layer$", "head.fc2_bias"),
    )
]

GATED_RULES = [
    *(
        WeightRenaming(source, target)
        for source, target in (
            (r"^conv1\.", "model.embeddings."),
            (r"^conv2\.", "head.time_projection."),
            (r"^conv3\.", "head.projection."),
            (r"^transformer\.encoder\.", "model."),
            (r"layers\.(\d+)\.norm1\.", r"layers.\1.spatial_norm."),
            (r"layers\.(\d+)\.norm2\.", r"layers.\1.norm."),
            (r"STransformer\.D_S$", "spatial.space_table"),
            (r"STransformer\.embed_linear\.", "spatial.position_projection."),
            (r"STransformer\.fs\.", "spatial.attention_gate."),
            (r"STransformer\.fg\.", "spatial.graph_gate."),
            (r"STransformer\.gcn\.gc1\.", "spatial.graph_convolution.fc1."),
            (r"STransformer\.gcn\.gc2\.weight$", "spatial.graph_convolution.fc2.weight"),
            (r"STransformer\.gcn\.gc2\.bias$", "spatial.graph_convolution.bias"),
            (r"STransformer\.", "spatial.layer."),
            (r"TTransformer\.temporal_embedding\.weight$", "time_table"),
            (r"TTransformer\.", "layer."),
            (r"attention\.queries\.", "attention.q_proj."),
            (r"attention\.keys\.", "attention.k_proj."),
            (r"attention\.values\.", "attention.v_proj."),
            (r"attention\.fc_out\.", "attention.o_proj."),
            (r"layer\.norm1\.", "layer.attention_norm."),
            (r"layer\.norm2\.", "layer.mlp_norm."),
            (r"feed_forward\.0\.", "fc1."),
            (r"feed_forward\.2\.", "fc2."),
        )
    ),
    *(
        WeightConverter(name, name, [Flatten(1)])
        for name in ("embeddings.weight", "head.time_projection.weight", "head.projection.weight")
    ),
    *(WeightConverter(name, name, [Kernel()]) for name in (f"graph_convolution.fc{i}.weight" for i in (1, 2))),
]
