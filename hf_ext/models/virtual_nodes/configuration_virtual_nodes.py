"""Configuration of the STGCN with virtual nodes.

Paper: "Virtual Nodes Improve Long-term Traffic Prediction", arXiv:2501.10048 (no public code); the STGCN is that of
https://github.com/liuxu77/LargeST. Field names are Transformers' and, for what is particular to time series, PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization

ADJACENCY_MODES = ("semi", "adaptive", "ones", "distance")
GRAPH_OPERATORS = ("symmetric", "random_walk")


@strict
class VirtualNodesConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes of an STGCN with virtual nodes. `VirtualNodesConfig.from_preset("largest-sd")` gives the paper's.

    Args:
        num_nodes: road sensors; the weights are tied to their number and order.
        num_virtual_nodes: nodes that are added; the paper's best is 10. The modes "ones" and "distance" add 1 and none.
        embedding_dim: width of the node embeddings that learned links come from.
        threshold: learned links weaker than this are dropped.
        adjacency_mode: "semi" (links of virtual nodes are learned), "adaptive" (all are), "ones" (one virtual node, linked to every sensor
            with weight 1) or "distance" (no virtual node).
        graph_operator: "symmetric" (the scaled Laplacian with lambda_max taken as 2, directions are lost) or "random_walk" (row-normalised,
            directions are kept).
        num_input_channels: values per sensor and step; LargeST has flow, time of day and day of week.
        context_length, prediction_length: steps read and forecast.
        blocks: [temporal, graph, temporal] widths of each block, and last the two widths of the output block.
        temporal_kernel_size: steps that a temporal convolution sees; each block has two and shortens time by twice that less one.
        chebyshev_order: number of Chebyshev polynomials, the identity included.
        dropout: after each block.
        layer_norm_eps: of every LayerNorm.
        stores_graph: the model has its graph with it, as a buffer that is saved with the weights; `set_graph` and `from_graph` do that.
        channel_means, channel_stds: mean and standard deviation with which the training data was standardised, one for all sensors or one
            each. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, an unknown choice, a context too short for the blocks, a probability outside [0, 1), or means and
            standard deviations that do not go together.
    """

    model_type = "virtual_node_stgcn"
    keys_to_ignore_at_inference = ["semi_adaptive_adjacency", "hidden_states"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "largest-sd": {"num_nodes": 716},
        "largest-sd-distance": {"num_nodes": 716, "adjacency_mode": "distance"},
        "pemsd7m-25": {"num_nodes": 25, "num_virtual_nodes": 4, "num_input_channels": 1},
    }

    num_nodes: int = 716
    num_virtual_nodes: int = 10
    embedding_dim: int = 10
    threshold: float | int = 0.1
    adjacency_mode: str = "semi"
    graph_operator: str = "symmetric"
    num_input_channels: int = 3
    context_length: int = 12
    prediction_length: int = 20
    blocks: list[list[int]] | None = None
    temporal_kernel_size: int = 3
    chebyshev_order: int = 3
    dropout: float | int = 0.5
    layer_norm_eps: float = 1e-5
    stores_graph: bool = False
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        default = [[64, 16, 64], [64, 16, 64], [128, 128]]
        self.blocks = default if self.blocks is None else [list(block) for block in self.blocks]
        super().__post_init__(**kwargs)
        self._check_choices()
        self._check_sizes()
        check_standardization(self)
        if self.channel_means is not None and len(self.channel_means) not in (1, self.num_nodes):
            raise ValueError(
                f"`channel_means` must have 1 or `num_nodes` ({self.num_nodes}) entries, got {len(self.channel_means)}"
            )

    @property
    def output_kernel_size(self) -> int:
        """Steps that are left after the blocks: the output block convolves over all of them."""
        return self.context_length - 2 * (self.temporal_kernel_size - 1) * (len(self.blocks) - 1)

    def _check_choices(self) -> None:
        for name, allowed in (("adjacency_mode", ADJACENCY_MODES), ("graph_operator", GRAPH_OPERATORS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, got {self.dropout}")
        if self.threshold < 0:
            raise ValueError(f"`threshold` must be 0 or more, got {self.threshold}")

    def _check_sizes(self) -> None:
        check_at_least(
            self,
            1,
            "num_nodes",
            "num_virtual_nodes",
            "embedding_dim",
            "num_input_channels",
            "context_length",
            "prediction_length",
            "temporal_kernel_size",
            "chebyshev_order",
        )
        *blocks, last = self.blocks or [[]]
        if not blocks or any(len(block) != 3 for block in blocks) or len(last) != 2 or min(map(min, self.blocks)) < 1:
            raise ValueError(
                f"`blocks` must be one or more blocks of three widths, then the two widths of the output block, got {self.blocks}"
            )
        if self.output_kernel_size < 2:
            shortest = self.context_length - self.output_kernel_size + 2
            raise ValueError(
                f"`context_length` must be at least {shortest} for {len(blocks)} blocks with `temporal_kernel_size` "
                f"{self.temporal_kernel_size}, got {self.context_length}"
            )


__all__ = ["VirtualNodesConfig"]
