"""An STGCN whose road graph has virtual nodes.

Paper: "Virtual Nodes Improve Long-term Traffic Prediction", arXiv:2501.10048; its authors published no code.
Reference for the STGCN: https://github.com/liuxu77/LargeST, src/models/stgcn.py.

The virtual nodes themselves are `hf_ext.layers.virtual_nodes.VirtualNodeAdjacency`, which any model with an adjacency can use.

Differences from the STGCN, on purpose:
- Tensors are (batch, time, nodes, channels), and convolutions over time and channels are `Linear`s (the same arithmetic).
- LargeST makes a 1x1 convolution for every change of width and uses it only where channels get fewer. Here only those exist.
- lambda_max of the Laplacian is taken as 2, which keeps the operator differentiable; LargeST computes it.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.graph import GraphBuffers, StoredGraph, chebyshev_features, graph_operator, sensor_values
from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.linear import token_linear
from hf_ext.layers.series import check_same_shape, masked_mae
from hf_ext.layers.virtual_nodes import VirtualNodeAdjacency

from .configuration_virtual_nodes import VirtualNodesConfig


@dataclass
class VirtualNodeSTGCNModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, steps left, sensors + virtual nodes, width).
        semi_adaptive_adjacency: (sensors + virtual nodes, the same), or with the batch before where it had a graph each; the virtual nodes
            come last.
        hidden_states: the input and the output of each block, with `output_hidden_states=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    semi_adaptive_adjacency: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VirtualNodeSTGCNForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean absolute error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, sensors, 1), or without the last axis where `past_values` had three; in the units of
            `past_values`.
        semi_adaptive_adjacency, hidden_states: as in `VirtualNodeSTGCNModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    semi_adaptive_adjacency: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class ChannelAlign(nn.Module):
    """To another number of channels: mapped where they get fewer, filled up with zeros where they get more."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.missing = max(out_channels - in_channels, 0)
        self.projection = nn.Linear(in_channels, out_channels) if in_channels > out_channels else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.projection is None:
            return nn.functional.pad(hidden_states, (0, self.missing))
        return token_linear(self.projection, hidden_states)


class GatedTemporalConvolution(nn.Module):
    """(P + x) * sigmoid(Q), with P and Q convolutions over time without padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.align = ChannelAlign(in_channels, out_channels)
        self.convolution = nn.Linear(kernel_size * in_channels, 2 * out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, nodes, C) -> (B, T - kernel_size + 1, nodes, out_channels)"""
        steps = hidden_states.shape[1] - self.kernel_size + 1
        shifted = [hidden_states[:, first : first + steps] for first in range(self.kernel_size)]
        value, gate = token_linear(self.convolution, torch.cat(shifted, dim=-1)).chunk(2, dim=-1)
        return (value + self.align(shifted[-1])) * gate.sigmoid()


class ChebyshevConvolution(nn.Module):
    """A graph convolution over Chebyshev polynomials of the operator, around it a skip path."""

    def __init__(self, in_channels: int, out_channels: int, order: int):
        super().__init__()
        self.order = order
        self.align = ChannelAlign(in_channels, out_channels)
        self.convolution = nn.Linear(order * out_channels, out_channels)

    def forward(self, hidden_states: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
        hidden_states = self.align(hidden_states)
        features = chebyshev_features(operator, hidden_states, self.order)
        return token_linear(self.convolution, features) + hidden_states


class VirtualNodeSTGCNBlock(GradientCheckpointingLayer):
    """Over time, over the graph, over time (STGCN, section 3.4)."""

    def __init__(self, config: VirtualNodesConfig, num_all_nodes: int, in_channels: int, widths: list[int]):
        super().__init__()
        first, middle, last = widths
        self.temporal_in = GatedTemporalConvolution(in_channels, first, config.temporal_kernel_size)
        self.graph_convolution = ChebyshevConvolution(first, middle, config.chebyshev_order)
        self.temporal_out = GatedTemporalConvolution(middle, last, config.temporal_kernel_size)
        self.norm = nn.LayerNorm((num_all_nodes, last), eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
        hidden_states = self.graph_convolution(self.temporal_in(hidden_states), operator).relu()
        return self.dropout(self.norm(self.temporal_out(hidden_states)))


class VirtualNodeSTGCNHead(nn.Module):
    """The output block: one convolution over the steps that are left, then two linear layers for the whole horizon."""

    def __init__(self, config: VirtualNodesConfig, num_all_nodes: int):
        super().__init__()
        width, inner_width = config.blocks[-1]
        self.temporal = GatedTemporalConvolution(config.blocks[-2][-1], width, config.output_kernel_size)
        self.norm = nn.LayerNorm((num_all_nodes, width), eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = nn.Linear(inner_width, config.prediction_length)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, steps left, nodes, C) -> (B, prediction_length, nodes, 1)"""
        hidden_states = self.norm(self.temporal(hidden_states))
        forecast = token_linear(self.fc2, token_linear(self.fc1, hidden_states).relu())
        return forecast.permute(0, 3, 2, 1)


class VirtualNodeSTGCNPreTrainedModel(StoredGraph, PreTrainedModel):
    config: VirtualNodesConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VirtualNodeAdjacency", "VirtualNodeSTGCNBlock", "VirtualNodeSTGCNHead"]
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": VirtualNodeSTGCNBlock}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, as LargeST; the embeddings of nodes are standard normal."""
        if isinstance(module, nn.Linear):
            init_conv_as_torch(module)
        elif isinstance(module, VirtualNodeAdjacency):
            for embedding in module.parameters(recurse=False):
                init.normal_(embedding)
        else:
            super()._init_weights(module)


class VirtualNodeSTGCNModel(VirtualNodeSTGCNPreTrainedModel):
    """The graph with its virtual nodes and the blocks, without a head."""

    def __init__(self, config: VirtualNodesConfig):
        super().__init__(config)
        self.graph = GraphBuffers(config, "adjacency")
        self.virtual_nodes = VirtualNodeAdjacency(
            config.num_nodes, config.num_virtual_nodes, config.embedding_dim, config.threshold, config.adjacency_mode
        )
        widths = config.blocks[:-1]
        in_channels = [config.num_input_channels, *(block[-1] for block in widths)]
        self.layers = nn.ModuleList(
            [
                VirtualNodeSTGCNBlock(config, self.virtual_nodes.num_all_nodes, channels, block)
                for channels, block in zip(in_channels, widths)
            ]
        )
        self.post_init()

    def keep_graph(self, adjacency: torch.Tensor) -> None:
        self.graph.adjacency = adjacency.to(self.layers[0].norm.weight)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        past_values: torch.Tensor,
        adjacency: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VirtualNodeSTGCNModelOutput:
        r"""
        Args:
            past_values: (batch, context_length, num_nodes, num_input_channels), without the last axis where that is 1; standardised.
            adjacency: (num_nodes, num_nodes), or with an axis for the batch before: weights of 0 or more; links of a sensor to itself do
                not count. A model that stores its graph needs none, nor does the mode "adaptive".
            past_observed_mask: same shape as `past_values`, 0 where a value is missing: the model sees 0 there, the mean.

        Raises:
            ValueError: a tensor of another shape, or no graph.
        """
        config = self.config
        sizes = (config.context_length, config.num_nodes, config.num_input_channels)
        values = self.virtual_nodes.pad_nodes(sensor_values(past_values, past_observed_mask, *sizes))
        # A LayerNorm keeps the model's floating-point type even where 8-bit loading changes that of the Linears.
        hidden_states = values.to(self.layers[0].norm.weight.dtype)
        augmented, operator = self.prepare_graph(adjacency, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, operator)
        return VirtualNodeSTGCNModelOutput(last_hidden_state=hidden_states, semi_adaptive_adjacency=augmented)

    def prepare_graph(self, adjacency: torch.Tensor | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented adjacency and the operator that the blocks multiply with."""
        if self.config.adjacency_mode != "adaptive":
            adjacency = self.resolve_graph(adjacency, self.graph("adjacency"))
        augmented = self.virtual_nodes(adjacency)
        operator = graph_operator(augmented, self.config.graph_operator).to(dtype)
        return augmented, operator if operator.ndim == 2 else operator[:, None]


class VirtualNodeSTGCNForPrediction(VirtualNodeSTGCNPreTrainedModel):
    """Forecasts the whole horizon of every sensor at once.

    ```python
    >>> from hf_ext.models.virtual_nodes import VirtualNodesConfig, VirtualNodeSTGCNForPrediction

    >>> model = VirtualNodeSTGCNForPrediction(VirtualNodesConfig(num_nodes=30, num_input_channels=1)).eval()
    >>> output = model(past_values=torch.randn(2, 12, 30), adjacency=torch.rand(30, 30))
    >>> output.prediction_outputs.shape, output.semi_adaptive_adjacency.shape
    (torch.Size([2, 20, 30]), torch.Size([40, 40]))
    ```
    """

    def __init__(self, config: VirtualNodesConfig):
        super().__init__(config)
        self.model = VirtualNodeSTGCNModel(config)
        self.head = VirtualNodeSTGCNHead(config, self.model.virtual_nodes.num_all_nodes)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        adjacency: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VirtualNodeSTGCNForPredictionOutput:
        r"""
        Args:
            past_values, adjacency, past_observed_mask: as in `VirtualNodeSTGCNModel`.
            future_values: of the shape of the forecast. With them the loss is the mean absolute error.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss.

        Raises:
            ValueError: a tensor of another shape, or no graph.
        """
        outputs = self.model(past_values, adjacency, past_observed_mask, **kwargs)
        predictions = self.model.virtual_nodes.drop_nodes(self.head(outputs.last_hidden_state))
        if past_values.ndim == 3:
            predictions = predictions.squeeze(-1)
        return VirtualNodeSTGCNForPredictionOutput(
            loss=None if future_values is None else self._loss(predictions, future_values, future_observed_mask),
            prediction_outputs=predictions,
            semi_adaptive_adjacency=outputs.semi_adaptive_adjacency,
            hidden_states=outputs.hidden_states,
        )

    @staticmethod
    def _loss(predictions: torch.Tensor, future_values: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        for name, given in (("future_values", future_values), ("future_observed_mask", observed)):
            check_same_shape(name, given, predictions.shape, "of the shape of the forecast")
        return masked_mae(predictions, future_values, None if observed is None else observed.bool())


__all__ = [
    "VirtualNodeAdjacency",
    "VirtualNodeSTGCNForPrediction",
    "VirtualNodeSTGCNForPredictionOutput",
    "VirtualNodeSTGCNModel",
    "VirtualNodeSTGCNModelOutput",
    "VirtualNodeSTGCNPreTrainedModel",
]
