"""Checkpoints of the STGCN with virtual nodes, and of LargeST's STGCN (`adjacency_mode` "distance").

`arguments` are the names of the method's description: num_nodes, num_virtual_nodes, Kt, Ks ... A LargeST checkpoint goes into the other
modes too if its LayerNorm tables are extended by a row for each virtual node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from hf_ext.models.virtual_nodes import VirtualNodesConfig

from .operations import Flatten, Kernel, only_tensor

MODEL = "VirtualNodeSTGCNForPrediction"
FIELDS = {
    "num_nodes": "num_nodes",
    "num_virtual_nodes": "num_virtual_nodes",
    "embedding_dim": "embedding_dim",
    "threshold": "threshold",
    "adjacency_mode": "adjacency_mode",
    "graph_operator": "graph_operator",
    "input_dim": "num_input_channels",
    "seq_len": "context_length",
    "horizon": "prediction_length",
    "blocks": "blocks",
    "Kt": "temporal_kernel_size",
    "Ks": "chebyshev_order",
    "dropout": "dropout",
}


class TimeKernel(ConversionOps):
    """A convolution over time (out, in, steps, 1) becomes a Linear's weight over the steps side by side (out, steps * in)."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).squeeze(-1).transpose(1, 2).flatten(1).contiguous()}


def config(arguments: Mapping[str, Any]) -> VirtualNodesConfig:
    """
    Raises:
        ValueError: an argument that the method does not have.
    """
    if unknown := sorted(set(arguments) - set(FIELDS)):
        raise ValueError(f"virtual_nodes has no argument {', '.join(unknown)}; it has {', '.join(FIELDS)}")
    return VirtualNodesConfig(**{FIELDS[name]: value for name, value in arguments.items()})


def IGNORE(arguments: Mapping[str, Any]) -> list[str]:
    """LargeST's 1x1 convolutions where channels do not get fewer (it makes them and never uses them), and embeddings in modes that learn
    no links."""
    fields = config(arguments)
    *blocks, output = fields.blocks
    inputs = [fields.num_input_channels, *(block[-1] for block in blocks)]
    widths = {"output.tmp_conv1": (inputs[-1], output[0])}
    for index, (channels, (first, middle, last)) in enumerate(zip(inputs, blocks)):
        block = f"st_blocks.{index}"
        widths |= {
            f"{block}.tmp_conv1": (channels, first),
            f"{block}.graph_conv": (first, middle),
            f"{block}.tmp_conv2": (middle, last),
        }
    embeddings = [] if fields.adjacency_mode in ("semi", "adaptive") else ["E1", "E2"]
    return embeddings + [f"{name}.align.align_conv.*" for name, (before, after) in widths.items() if before <= after]


RULES = [
    *(
        WeightRenaming(source, target)
        for source, target in (
            (r"^E1$", "model.virtual_nodes.source_embedding"),
            (r"^E2$", "model.virtual_nodes.target_embedding"),
            (r"^st_blocks\.", "model.layers."),
            (r"^output\.tmp_conv1\.", "head.temporal."),
            (r"^output\.tc1_ln\.", "head.norm."),
            (r"^output\.", "head."),
            (r"\.tmp_conv1\.", ".temporal_in."),
            (r"\.tmp_conv2\.", ".temporal_out."),
            (r"\.tc2_ln\.", ".norm."),
            (r"\.graph_conv\.cheb_graph_conv\.", ".graph_convolution.convolution."),
            (r"\.graph_conv\.", ".graph_convolution."),
            (r"\.align\.align_conv\.", ".align.projection."),
            (r"\.causal_conv\.", ".convolution."),
        )
    ),
    WeightConverter("align.projection.weight", "align.projection.weight", [Flatten(1)]),
    WeightConverter("graph_convolution.convolution.weight", "graph_convolution.convolution.weight", [Kernel()]),
    *(
        WeightConverter(f"{name}.convolution.weight", f"{name}.convolution.weight", [TimeKernel()])
        for name in ("temporal_in", "temporal_out", "temporal")
    ),
]
