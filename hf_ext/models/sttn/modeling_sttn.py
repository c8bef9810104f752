"""STTN: attention between road sensors at each step, attention over time at each sensor, and a fixed road graph beside the first.

Paper: "Spatial-Temporal Transformer Networks for Traffic Flow Forecasting", arXiv:2001.02908.
References: https://github.com/xumingxingsjtu/STTN for `form="residual"`; STTN.py of https://github.com/LibCity/Bigscity-LibCity for
`form="gated"`, which is the paper's figure. They differ in almost every detail, so each form has its block and its head here.

Differences from the references, on purpose:
- The residual form puts learned tables beside the values before it maps them. Here each part has its own linear map and the results are
  added, so what the tables contribute is computed once and not for every sample (the same arithmetic, up to eight times less of it).
- The residual form takes any `context_length`; the reference has a 12 written into it.
- The gated form keeps the adjacency as it was given and normalises it once. In the reference the adjacency, the learned table that starts
  as its copy and, on a CPU, a loaded checkpoint share memory, and every forward pass normalises the result of the one before.
- The graph may be an argument of the forward pass, one for all samples or one each, or be stored with the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.graph import GraphBuffers, StoredGraph, chebyshev_features, scaled_laplacian, sensor_values
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.linear import token_linear
from hf_ext.layers.series import check_same_shape, masked_mae

from .configuration_sttn import STTNConfig

GRAPH_WEIGHT = 0.1  # of the graph convolution in the residual form's sum
JOINT_NORM_EPS = 1e-6  # of the residual form's LayerNorms over sensors and channels
INSTANCE_NORM_EPS = 1e-5


@dataclass
class STTNModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, time, sensors, width).
        hidden_states: the embeddings and the output of each block, with `output_hidden_states=True`.
        attentions: for each block that between sensors, (batch, time, heads, sensors, sensors), then that over time,
            (batch, sensors, heads, time, time), with `output_attentions=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class STTNForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean absolute error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, sensors), or (batch, prediction_length, sensors, outputs) where `past_values` had
            four axes; in the units of `past_values`.
        hidden_states, attentions: as in `STTNModelOutput`; of the first step where the forecast is fed back.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def sensor_attention(self) -> torch.Tensor | None:
        """(sensors, sensors): how much each row's sensor looks at each column's, averaged over batch, time, heads and blocks.

        None unless attentions were asked for.
        """
        return (
            None if self.attentions is None else torch.stack([a.mean((0, 1, 2)) for a in self.attentions[::2]]).mean(0)
        )


class STTNAttention(nn.Module):
    """Attention along the axis before the last, of (batch, rows, tokens, width).

    In the gated form all heads share one square map of a head's width, and logits are divided by the root of the whole width.
    """

    def __init__(self, config: STTNConfig, width: int):
        super().__init__()
        self.config = config
        self.head_dim = width // config.num_attention_heads
        gated = config.form == "gated"
        self.projection_width = self.head_dim if gated else width
        self.scaling = (width if gated else self.head_dim) ** -0.5
        self.attention_dropout = 0.0 if gated else config.dropout
        self.is_causal = False
        self.q_proj = nn.Linear(self.projection_width, self.projection_width, bias=not gated)
        self.k_proj = nn.Linear(self.projection_width, self.projection_width, bias=not gated)
        self.v_proj = nn.Linear(self.projection_width, self.projection_width, bias=not gated)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, query_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, rows, tokens, width = hidden_states.shape

        def heads(projection: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            x = token_linear(projection, x.reshape(batch * rows, -1, self.projection_width))
            return x.view(batch * rows, tokens, -1, self.head_dim).transpose(1, 2)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            heads(self.q_proj, query_states),
            heads(self.k_proj, hidden_states),
            heads(self.v_proj, hidden_states),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attn_weights = None if attn_weights is None else attn_weights.unflatten(0, (batch, rows))
        return token_linear(self.o_proj, attn_output.reshape(batch, rows, tokens, width)), attn_weights


class STTNEncoderLayer(nn.Module):
    """A post-norm Transformer layer whose queries, and its own skip path, also get a position."""

    def __init__(self, config: STTNConfig, width: int, inner_width: int):
        super().__init__()
        before, after = (config.dropout, 0.0) if config.form == "residual" else (0.0, config.dropout)
        self.attention = STTNAttention(config, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = nn.Linear(inner_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.branch_dropout = nn.Dropout(before)
        self.norm_dropout = nn.Dropout(after)

    def forward(
        self, hidden_states: torch.Tensor, position: torch.Tensor | float = 0.0, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        query_states = hidden_states + position
        attn_output, _ = self.attention(hidden_states, query_states, **kwargs)
        hidden_states = self.norm_dropout(self.attention_norm(query_states + self.branch_dropout(attn_output)))
        mlp_output = token_linear(self.fc2, nn.functional.relu(token_linear(self.fc1, hidden_states)))
        return self.norm_dropout(self.mlp_norm(hidden_states + self.branch_dropout(mlp_output)))


class STTNPartsLinear(nn.Module):
    """A linear map of several parts that lie side by side, without laying them there: the sum of a map for each part."""

    def __init__(self, sizes: list[int], width: int, bias: bool = False):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(size, width, bias=bias and i == 0) for i, size in enumerate(sizes)])

    def forward(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        value, *tables = (token_linear(linear, part) for linear, part in zip(self.parts, parts))
        return value + sum(tables[1:], tables[0])


class STTNPartsPad(nn.Module):
    """The parts side by side, and zeros up to `width`."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        joined = torch.cat([part.expand(*shape, -1) for part in parts], dim=-1)
        return nn.functional.pad(joined, (0, self.width - joined.shape[-1]))


def fit_parts(sizes: list[int], width: int, map_narrower: bool = False) -> STTNPartsLinear | STTNPartsPad:
    """A linear map of what is wider than `width`; what is narrower is padded, unless it is to be mapped too."""
    mapped = sum(sizes) > width or (map_narrower and sum(sizes) < width)
    return STTNPartsLinear(sizes, width) if mapped else STTNPartsPad(width)


class STTNEmbeddings(nn.Module):
    """The values of a sensor at a step, mapped to a token. Not a `Linear`: 8-bit loading would take one, and from a single value it makes
    nothing that makes sense."""

    def __init__(self, config: STTNConfig):
        super().__init__()
        residual = config.form == "residual"
        width = config.embedding_size if residual else config.hidden_size
        self.weight = nn.Parameter(torch.empty(width, config.num_input_channels))
        self.bias = nn.Parameter(torch.empty(width))
        self.dropout = nn.Dropout(0.0 if residual else config.dropout)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.dropout(nn.functional.linear(values, self.weight, self.bias))


class STTNResidualSpatial(nn.Module):
    """Attention between sensors, the projected input and a tenth of the graph convolution, added and rectified."""

    def __init__(self, config: STTNConfig, in_width: int, width: int):
        super().__init__()
        self.order = config.chebyshev_order
        sizes = [in_width, config.num_nodes, config.context_length]
        self.space_table = nn.Parameter(torch.empty(config.num_nodes, config.num_nodes))
        self.time_table = nn.Parameter(torch.empty(config.context_length, config.context_length))
        self.skip = fit_parts(sizes, width, config.skip_projection == "different")
        self.graph_convolution = STTNPartsLinear([self.order * size for size in sizes], width, bias=True)
        self.input_projection = fit_parts(sizes, width)
        self.layer = STTNEncoderLayer(config, width, config.intermediate_size)

    def forward(
        self, hidden_states: torch.Tensor, operator: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        # A copy, for products of small matrices depend on where in memory a loaded file put them.
        space = self.space_table.clone()
        parts = (hidden_states, space, self.time_table[:, None])  # (B, T, N, C), (N, N), (T, 1, T)
        attended = self.layer(self.input_projection(parts), **kwargs)
        return nn.functional.relu(attended + self.skip(parts) + GRAPH_WEIGHT * self._convolve(parts, operator))

    def _convolve(self, parts: tuple[torch.Tensor, ...], operator: torch.Tensor) -> torch.Tensor:
        value, space, time = parts
        # A time row is the same at every sensor, so the polynomials see it as their row sums: (N, order) x (T, 1, T) -> (T, N, order * T)
        sums = chebyshev_features(operator, torch.ones_like(space[:, :1]), self.order)
        return self.graph_convolution(
            (
                chebyshev_features(operator, value, self.order),
                chebyshev_features(operator, space, self.order),
                (sums[..., None] * time[..., None, :]).flatten(-2),
            )
        )


class STTNResidualBlock(GradientCheckpointingLayer):
    def __init__(self, config: STTNConfig, index: int):
        super().__init__()
        in_width = config.blocks[index - 1][1] if index else config.embedding_size
        spatial_width, width = config.blocks[index]
        sizes = [spatial_width, config.context_length]
        self.spatial = STTNResidualSpatial(config, in_width, spatial_width)
        self.time_table = nn.Parameter(torch.empty(config.context_length, config.context_length))
        self.skip = fit_parts(sizes, width)
        self.input_projection = fit_parts(sizes, width)
        self.layer = STTNEncoderLayer(config, width, config.intermediate_size)
        self.norm = nn.LayerNorm((config.num_nodes, width), eps=JOINT_NORM_EPS)

    def forward(
        self, hidden_states: torch.Tensor, operator: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        hidden_states = self.spatial(hidden_states, operator, **kwargs)
        parts = (hidden_states, self.time_table[:, None])
        tokens = self.input_projection(parts).transpose(1, 2)  # (B, T, N, C) -> (B, N, T, C)
        attended = self.layer(tokens, **kwargs).transpose(1, 2)
        return self.norm(nn.functional.relu(attended + self.skip(parts)))


class STTNResidualHead(nn.Module):
    """The next step: one convolution over all of time, then two linear layers with a bias for each sensor."""

    def __init__(self, config: STTNConfig):
        super().__init__()
        width = config.blocks[-1][1]
        self.time_convolution = nn.Linear(config.context_length * width, width)
        self.norm = nn.LayerNorm((config.num_nodes, width), eps=JOINT_NORM_EPS)
        self.fc1 = nn.Linear(width, config.head_size, bias=False)
        self.fc1_bias = nn.Parameter(torch.empty(config.num_nodes, config.head_size))
        self.fc2 = nn.Linear(config.head_size, 1, bias=False)
        self.fc2_bias = nn.Parameter(torch.empty(config.num_nodes, 1))
        self.dropout = nn.Dropout(config.head_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, N, C) -> (B, 1, N, 1)"""
        convolved = token_linear(self.time_convolution, hidden_states.transpose(1, 2).flatten(2))
        hidden_states = self.norm(nn.functional.relu(convolved + hidden_states[:, -1]))
        hidden_states = self.dropout(token_linear(self.fc1, hidden_states) + self.fc1_bias)
        return (self.fc2(hidden_states) + self.fc2_bias)[:, None]


class STTNGraphConvolution(nn.Module):
    """Two layers of graph convolution; their log-softmax over channels is what the gate mixes in."""

    def __init__(self, config: STTNConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.fc2 = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
        # Over the graph where there are fewer channels: before the first map, after the second.
        hidden_states = self.dropout(nn.functional.relu(token_linear(self.fc1, operator @ hidden_states)))
        return (operator @ token_linear(self.fc2, hidden_states) + self.bias).log_softmax(dim=-1)


class STTNGatedSpatial(nn.Module):
    """A gate between attention among the sensors and the fixed graph (section 3.2)."""

    def __init__(self, config: STTNConfig):
        super().__init__()
        width = config.hidden_size
        self.space_table = nn.Parameter(torch.empty(config.num_nodes, config.num_nodes))
        self.position_projection = nn.Linear(config.num_nodes, width)
        self.layer = STTNEncoderLayer(config, width, config.mlp_ratio * width)
        self.graph_convolution = STTNGraphConvolution(config)
        self.attention_gate = nn.Linear(width, width)
        self.graph_gate = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, operator: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attended = self.layer(hidden_states, self.position_projection(self.space_table), **kwargs)
        convolved = self.graph_convolution(hidden_states, operator)
        gate = token_linear(self.attention_gate, attended) + token_linear(self.graph_gate, convolved)
        return torch.lerp(convolved, attended, gate.sigmoid())


class STTNGatedBlock(GradientCheckpointingLayer):
    def __init__(self, config: STTNConfig, index: int):
        super().__init__()
        width = config.hidden_size
        self.context_length = config.context_length
        self.spatial = STTNGatedSpatial(config)
        self.spatial_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.time_table = nn.Parameter(torch.empty(config.steps_per_day, width))
        self.layer = STTNEncoderLayer(config, width, config.mlp_ratio * width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden_states: torch.Tensor, operator: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        hidden_states = self.spatial_norm(self.spatial(hidden_states, operator, **kwargs) + hidden_states)
        tokens = hidden_states.transpose(1, 2)  # (B, T, N, C) -> (B, N, T, C)
        attended = self.layer(tokens, self.time_table[: self.context_length], **kwargs).transpose(1, 2)
        return self.dropout(self.norm(attended + hidden_states))


class STTNGatedHead(nn.Module):
    """The whole horizon: a map over time, a rectifier, a map over channels."""

    def __init__(self, config: STTNConfig):
        super().__init__()
        self.time_projection = nn.Linear(config.context_length, config.prediction_length)
        self.projection = nn.Linear(config.hidden_size, config.num_output_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, N, C) -> (B, H, N, outputs)"""
        steps = token_linear(self.time_projection, hidden_states.permute(0, 2, 3, 1))  # (B, N, C, H)
        return token_linear(self.projection, nn.functional.relu(steps).permute(0, 3, 1, 2))


def residual_operator(adjacency: torch.Tensor) -> torch.Tensor:
    """The reference's convolution sums over the rows of its polynomials, hence the transpose."""
    return scaled_laplacian(adjacency).mT


def gated_operator(adjacency: torch.Tensor) -> torch.Tensor:
    """The whole matrix with mean 0 and variance 1, as LibCity's InstanceNorm makes it."""
    variance, mean = torch.var_mean(adjacency, dim=(-2, -1), correction=0, keepdim=True)
    return (adjacency - mean) * (variance + INSTANCE_NORM_EPS).rsqrt()


@dataclass(frozen=True)
class Form:
    block: type[nn.Module]
    head: type[nn.Module]
    operator: Callable[[torch.Tensor], torch.Tensor]


FORMS = {
    "residual": Form(STTNResidualBlock, STTNResidualHead, residual_operator),
    "gated": Form(STTNGatedBlock, STTNGatedHead, gated_operator),
}


class STTNPreTrainedModel(StoredGraph, PreTrainedModel):
    config: STTNConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "STTNEmbeddings",
        *(cls.__name__ for form in FORMS.values() for cls in (form.block, form.head)),
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": (STTNResidualBlock, STTNGatedBlock), "attentions": STTNAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the references: Glorot, truncated normal and empty tables in the residual form, PyTorch's own in the gated one."""
        if self.config.form == "residual":
            self._init_residual(module)
        else:
            self._init_gated(module)

    def _init_residual(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init_linear(module, std=0.02)
        elif isinstance(module, STTNPartsLinear):
            fan_in = sum(linear.in_features for linear in module.parts)
            for linear in module.parts:
                init_glorot(linear, fan_in)
        elif isinstance(module, STTNEmbeddings):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, STTNResidualHead):
            for linear in (module.time_convolution, module.fc1, module.fc2):
                init_glorot(linear)
            init.zeros_(module.fc1_bias)
            init.zeros_(module.fc2_bias)
        elif isinstance(module, (STTNResidualSpatial, STTNResidualBlock)):
            for table in module.parameters(recurse=False):
                init.zeros_(table)
        else:
            super()._init_weights(module)

    def _init_gated(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init_conv_as_torch(module)
        elif isinstance(module, STTNGraphConvolution):
            for parameter in (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.bias):
                bound = parameter.shape[0] ** -0.5
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, STTNEmbeddings):
            init_conv_as_torch(module)
        elif isinstance(module, STTNGatedSpatial):
            init.normal_(module.space_table, std=0.02)  # `from_graph` puts the adjacency here, as the reference does
        elif isinstance(module, STTNGatedBlock):
            init.normal_(module.time_table)
        else:
            super()._init_weights(module)

    @classmethod
    def from_graph(cls, config: STTNConfig, adjacency: torch.Tensor) -> "STTNPreTrainedModel":
        """A new model that has its graph with it; in the gated form the learned tables of sensors start as the adjacency."""
        model = super().from_graph(config, adjacency)
        for module in model.modules():
            if isinstance(module, STTNGatedSpatial):
                module.space_table.data.copy_(adjacency)
        return model


def init_glorot(linear: nn.Linear, fan_in: int | None = None) -> None:
    """Glorot-uniform weights, zero bias."""
    bound = (6 / ((fan_in or linear.in_features) + linear.out_features)) ** 0.5
    init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        init.zeros_(linear.bias)


class STTNModel(STTNPreTrainedModel):
    """Embeddings and blocks, without a head."""

    def __init__(self, config: STTNConfig):
        super().__init__(config)
        form = FORMS[config.form]
        self.graph = GraphBuffers(config, "adjacency", "operator")
        self.embeddings = STTNEmbeddings(config)
        self.layers = nn.ModuleList(
            [
                form.block(config, index)
                for index in range(len(config.blocks) if config.form == "residual" else config.num_hidden_layers)
            ]
        )
        self.post_init()

    def keep_graph(self, adjacency: torch.Tensor) -> None:
        reference = self.layers[0].norm.weight
        self.graph.adjacency = adjacency.to(reference)
        self.graph.operator = FORMS[self.config.form].operator(adjacency.double()).to(reference)

    def prepare_graph(self, adjacency: torch.Tensor | None) -> torch.Tensor:
        """(N, N) or (B, N, N) weights -> the operator that the blocks multiply with; without weights that of the stored graph.

        Raises:
            ValueError: another number of nodes, or neither weights nor a stored graph.
        """
        graph = self.resolve_graph(adjacency, self.graph("operator"))
        if adjacency is None:
            return graph
        precise = graph if graph.dtype == torch.float64 else graph.float()
        operator = FORMS[self.config.form].operator(precise).to(self.layers[0].norm.weight.dtype)
        return operator if operator.ndim == 2 else operator[:, None]

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        past_values: torch.Tensor,
        adjacency: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        graph_operator: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> STTNModelOutput:
        r"""
        Args:
            past_values: (batch, context_length, num_nodes), or with a last axis of `num_input_channels`; standardised.
            adjacency: (num_nodes, num_nodes), or with an axis for the batch before: weights of 0 or more. A model that stores its graph
                needs none.
            past_observed_mask: same shape as `past_values`, 0 where a value is missing: the model sees 0 there, the mean.
            graph_operator: what `prepare_graph` gives, in place of `adjacency`.

        Raises:
            ValueError: a tensor of another shape, or no graph.
        """
        values = self.sensor_values(past_values, past_observed_mask)
        operator = self.prepare_graph(adjacency) if graph_operator is None else graph_operator
        # A LayerNorm keeps the model's floating-point type even where 8-bit loading changes that of the Linears.
        hidden_states = self.embeddings(values.to(self.layers[0].norm.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, operator, **kwargs)
        return STTNModelOutput(last_hidden_state=hidden_states)

    def sensor_values(self, past_values: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        """(batch, context_length, num_nodes, num_input_channels), with 0 where nothing was observed."""
        config = self.config
        sizes = (config.context_length, config.num_nodes, config.num_input_channels)
        return sensor_values(past_values, observed, *sizes)


class STTNForPrediction(STTNPreTrainedModel):
    """Forecasts every sensor: step by step in the residual form, all steps at once in the gated one.

    ```python
    >>> from hf_ext.models.sttn import STTNConfig, STTNForPrediction

    >>> model = STTNForPrediction(STTNConfig.from_preset("pemsd7m-25")).eval()
    >>> model(past_values=torch.randn(2, 12, 25), adjacency=torch.rand(25, 25)).prediction_outputs.shape
    torch.Size([2, 9, 25])
    ```
    """

    def __init__(self, config: STTNConfig):
        super().__init__(config)
        self.model = STTNModel(config)
        self.head = FORMS[config.form].head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        adjacency: torch.Tensor | None = None,
        prediction_length: int | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> STTNForPredictionOutput:
        r"""
        Args:
            past_values, adjacency, past_observed_mask: as in `STTNModel`.
            prediction_length: steps to forecast; by default those of `future_values`, or `config.prediction_length`. Any number in the
                residual form, which drops the oldest step and takes its own forecast as the newest; at most
                `config.prediction_length` in the gated form.
            future_values: (batch, prediction_length, num_nodes), or with a last axis of `num_output_channels`. With them the loss is the
                mean absolute error. One step of them trains the residual form as its authors do.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss.

        Raises:
            ValueError: a tensor of another shape, no graph, or a horizon that the form cannot reach.
        """
        if prediction_length is None:
            prediction_length = self.config.prediction_length if future_values is None else future_values.shape[1]
        self._check_horizon(prediction_length)
        inputs = {"graph_operator": self.model.prepare_graph(adjacency), "past_observed_mask": past_observed_mask}
        outputs = self.model(past_values, **inputs, **kwargs)
        predictions = self.head(outputs.last_hidden_state)[:, :prediction_length]
        if predictions.shape[1] < prediction_length:
            values = self.model.sensor_values(past_values, past_observed_mask)
            predictions = self._roll(values, predictions, prediction_length, inputs["graph_operator"], **kwargs)
        if past_values.ndim == 3 and self.config.num_output_channels == 1:
            predictions = predictions.squeeze(-1)
        return STTNForPredictionOutput(
            loss=None if future_values is None else self._loss(predictions, future_values, future_observed_mask),
            prediction_outputs=predictions,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _roll(
        self, values: torch.Tensor, first: torch.Tensor, steps: int, operator: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """The forecast fed back: `steps` of them, the first one already known."""
        window = torch.cat([values, first.to(values.dtype)], dim=1)
        for _ in range(steps - 1):
            recent = window[:, -self.config.context_length :]
            step = self.head(self.model(recent, graph_operator=operator, **kwargs).last_hidden_state)
            window = torch.cat([window, step.to(window.dtype)], dim=1)
        return window[:, -steps:]

    @staticmethod
    def _loss(predictions: torch.Tensor, future_values: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        for name, given in (("future_values", future_values), ("future_observed_mask", observed)):
            check_same_shape(name, given, predictions.shape, "of the shape of the forecast")
        return masked_mae(predictions, future_values, None if observed is None else observed.bool())

    def _check_horizon(self, steps: int) -> None:
        most = self.config.prediction_length
        if steps < 1 or (self.config.form == "gated" and steps > most):
            allowed = f"between 1 and {most} in the gated form" if self.config.form == "gated" else "at least 1"
            raise ValueError(f"`prediction_length` must be {allowed}, got {steps}")


__all__ = [
    "STTNForPrediction",
    "STTNForPredictionOutput",
    "STTNModel",
    "STTNModelOutput",
    "STTNPreTrainedModel",
]
