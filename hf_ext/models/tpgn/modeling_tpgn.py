"""TPGN: a series folded into rows of a period; a PGN runs down each column, patches summarise the rows, a linear map forecasts.

Paper: "PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting", arXiv:2409.17703 (NeurIPS 2024).
Reference: https://github.com/Water2sea/TPGN. It has no licence, so this is written from the paper and from what it computes.

Differences from the reference, on purpose:
- Its convolutions, each over its whole input and grouped by variate, are `Linear`s here: one variate's weights are a run of rows.
  All of them run in one batched matrix product; with LoRA, 8 bits or offloading the layer itself is called.
- A horizon that is no multiple of the period is cut to length; the reference fails, or gives more.
- Missing values are told apart by `past_observed_mask`. Level and scale are in the precision of the input.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.linear import is_plain_linear
from hf_ext.layers.series import check_same_shape, masked_mse, standardize_window
from hf_ext.ops.pgn import extend, gated_update, gather, group_linear, pgn

from .configuration_tpgn import TPGNConfig


@dataclass
class TPGNModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, period, variates, hidden_size), or twice that width with the short branch before the long one: what
            is known of each column.
        loc, scale: (batch, 1, variates), what the window was standardised with; 0 and 1 without.
    """

    last_hidden_state: torch.FloatTensor | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


@dataclass
class TPGNForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, variates), in the units of `past_values`.
        loc, scale: as in `TPGNModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


def channel_linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(..., groups, in) -> (..., groups, out): each group by its own run of `out` rows of `layer`'s weight, (groups * out, in)."""
    groups = x.shape[-2]
    if is_plain_linear(layer):
        return group_linear(x, layer.weight.unflatten(0, (groups, -1)), layer.bias.unflatten(0, (groups, -1)))
    everything = (
        layer(x.flatten(0, -2)).unflatten(-1, (groups, -1)).unflatten(0, x.shape[:-1])
    )  # (..., groups, groups, out)
    return everything.diagonal(dim1=-3, dim2=-2).movedim(-1, -2)


class PGNLayer(GradientCheckpointingLayer):
    """The parallel gated network: a sequence in, a sequence of hidden states out, as from an RNN, but no step waits for another.

    ```python
    >>> from hf_ext.models.tpgn import PGNLayer

    >>> layer = PGNLayer(input_size=8, hidden_size=16, window=100)
    >>> hidden_states, state = layer(torch.randn(2, 50, 8))
    >>> more, state = layer(torch.randn(2, 1, 8), state)
    ```

    Args:
        input_size, hidden_size: width of an input and of a hidden state.
        window: how many inputs before a step it reads; for all of a sequence, its length less one.
        num_groups: independent networks side by side.
    """

    def __init__(self, input_size: int, hidden_size: int, window: int, num_groups: int = 1):
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("window", window),
            ("num_groups", num_groups),
        ):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}")
        self.input_size, self.hidden_size, self.window, self.num_groups = input_size, hidden_size, window, num_groups
        self.history = nn.Linear(window * input_size, num_groups * hidden_size)
        self.gate = nn.Linear(input_size + hidden_size, num_groups * 2 * hidden_size)

    def forward(
        self, inputs: torch.Tensor, initial_state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs: (batch, steps, num_groups, input_size), or (batch, steps, input_size) for a single group.
            initial_state: the state that a call before returned, where this goes on; zeros before the start.

        Returns:
            Hidden states, as `inputs` but `hidden_size` wide, and the state: the last `window` inputs.

        Raises:
            ValueError: a tensor of another shape.
        """
        if inputs.ndim == 3 and self.num_groups == 1:
            states = None if initial_state is None else initial_state.unsqueeze(-2)
            hidden_states, state = self._grouped(inputs.unsqueeze(-2), states)
            return hidden_states.squeeze(-2), state.squeeze(-2)
        return self._grouped(inputs, initial_state)

    def _grouped(self, inputs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        groups, width = self.num_groups, self.input_size
        if inputs.ndim != 4 or inputs.shape[2:] != (groups, width) or 0 in inputs.shape:
            raise ValueError(
                f"`inputs` must be (batch, steps, num_groups = {groups}, input_size = {width}), the third only with more groups "
                f"than one, got {tuple(inputs.shape)}"
            )
        expected = (inputs.shape[0], self.window, groups, width)
        check_same_shape("initial_state", state, expected, "(batch, window, num_groups, input_size)")
        if is_plain_linear(self.history) and is_plain_linear(self.gate):
            history_weight = self.history.weight.unflatten(0, (groups, -1)).unflatten(-1, (self.window, width))
            gate_weight = self.gate.weight.unflatten(0, (groups, -1))
            biases = (layer.bias.unflatten(0, (groups, -1)) for layer in (self.history, self.gate))
            history_bias, gate_bias = biases
            return pgn(inputs, history_weight, history_bias, gate_weight, gate_bias, state, output_final_state=True)
        extended = extend(inputs, self.window, state)
        hidden = channel_linear(self.history, gather(extended, self.window))
        gates = channel_linear(self.gate, torch.cat([inputs, hidden], -1))
        return gated_update(hidden, gates), extended[:, -self.window :]


class TPGNLongBranch(nn.Module):
    """A PGN down each column, and what it gave over the rows in one vector for each column."""

    def __init__(self, config: TPGNConfig):
        super().__init__()
        width, groups = config.hidden_size, config.num_input_channels
        self.pgn = PGNLayer(1 + config.num_time_features, width, config.num_rows - 1, groups)
        self.collapse = nn.Linear(config.num_rows * width, groups * width)

    def forward(self, folded: torch.Tensor) -> torch.Tensor:
        """(B, rows, P, V, 1 + features) -> (B, P, V, D)"""
        columns = folded.transpose(1, 2)
        states, _ = self.pgn(columns.flatten(0, 1))  # (B * P, rows, V, D)
        states = channel_linear(self.collapse, states.transpose(1, 2).flatten(-2))
        return states.unflatten(0, columns.shape[:2])


class TPGNShortBranch(GradientCheckpointingLayer):
    """Every row in one vector, and all rows in one: the same for each column."""

    def __init__(self, config: TPGNConfig):
        super().__init__()
        width, groups = config.hidden_size, config.num_input_channels
        self.row = nn.Linear(config.period * (1 + config.num_time_features), groups * width)
        self.collapse = nn.Linear(config.num_rows * width, groups * width)

    def forward(self, folded: torch.Tensor) -> torch.Tensor:
        """(B, rows, P, V, 1 + features) -> (B, V, D)"""
        rows = channel_linear(self.row, folded.transpose(2, 3).flatten(-2))
        return channel_linear(self.collapse, rows.transpose(1, 2).flatten(-2))


class TPGNPreTrainedModel(PreTrainedModel):
    config: TPGNConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PGNLayer", "TPGNShortBranch"]
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation everywhere, as in the reference."""
        if isinstance(module, nn.Linear):
            init_conv_as_torch(module)
        else:
            super()._init_weights(module)


class TPGNModel(TPGNPreTrainedModel):
    """Both branches, without the output layer."""

    def __init__(self, config: TPGNConfig):
        super().__init__(config)
        self.long_branch = TPGNLongBranch(config)
        self.short_branch = TPGNShortBranch(config) if config.use_short_branch else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TPGNModelOutput:
        r"""
        Args:
            past_values: (batch, context_length, num_input_channels), usually standardised over the training data. Never written to.
            past_time_features: (batch, context_length, num_time_features) in [-0.5, 0.5]; needed unless `num_time_features` is 0.
            past_observed_mask: as `past_values`, 1 where a value was observed and 0 where it is missing. What stands in
                `past_values` under a 0 does not matter, NaN included; the model sees the variate's mean there, or 0 without
                `scaling`.

        Raises:
            ValueError: a tensor of another shape, or no calendar features.
        """
        config = self.config
        self._check_shapes(past_values, past_time_features, past_observed_mask)
        dtype = self.dtype
        if not past_values.is_floating_point():
            past_values = past_values.to(dtype)
        values, loc, scale = standardize_window(past_values, past_observed_mask, config.scaling is not None)
        inputs = values.to(dtype).unsqueeze(-1)
        if config.num_time_features:
            calendar = past_time_features.to(dtype).unsqueeze(2).expand(-1, -1, config.num_input_channels, -1)
            inputs = torch.cat([inputs, calendar], dim=-1)
        folded = inputs.unflatten(1, (config.num_rows, config.period))  # (B, rows, P, V, 1 + features)
        states = self.long_branch(folded)
        if self.short_branch is not None:
            short = self.short_branch(folded)
            states = torch.cat([short.unsqueeze(1).expand_as(states), states], dim=-1)
        return TPGNModelOutput(last_hidden_state=states, loc=loc, scale=scale)

    def _check_shapes(
        self, past_values: torch.Tensor, time_features: torch.Tensor | None, observed: torch.Tensor | None
    ) -> None:
        config = self.config
        expected = (config.context_length, config.num_input_channels)
        if past_values.ndim != 3 or tuple(past_values.shape[1:]) != expected:
            raise ValueError(
                f"`past_values` must be (batch, context_length, num_input_channels) = (batch, {expected[0]}, {expected[1]}), "
                f"got {tuple(past_values.shape)}"
            )
        check_same_shape("past_observed_mask", observed, past_values.shape, "of the shape of `past_values`")
        if not config.num_time_features:
            return
        if time_features is None:
            raise ValueError(
                f"`past_time_features` are needed, {config.num_time_features} for each step: the weights read them"
            )
        expected = (*past_values.shape[:2], config.num_time_features)
        check_same_shape("past_time_features", time_features, expected, "(batch, context_length, num_time_features)")


class TPGNForPrediction(TPGNPreTrainedModel):
    """Forecasts `prediction_length` steps of every variate at once: from each column's states, that column of every future row.

    ```python
    >>> from hf_ext.models.tpgn import TPGNConfig, TPGNForPrediction

    >>> model = TPGNForPrediction(TPGNConfig.from_preset("etth1-168")).eval()
    >>> model(past_values=torch.randn(2, 168, 1), past_time_features=torch.rand(2, 168, 4) - 0.5).prediction_outputs.shape
    torch.Size([2, 168, 1])
    ```
    """

    def __init__(self, config: TPGNConfig):
        super().__init__(config)
        self.model = TPGNModel(config)
        width = config.hidden_size * (2 if config.use_short_branch else 1)
        self.head = nn.Linear(width, config.num_input_channels * config.num_future_rows)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TPGNForPredictionOutput:
        r"""
        Args:
            past_values, past_time_features, past_observed_mask: as in `TPGNModel`.
            future_values: (batch, prediction_length, num_input_channels). With them the loss is the mean squared error.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss.

        Raises:
            ValueError: a tensor of another shape, or no calendar features.
        """
        outputs = self.model(past_values, past_time_features, past_observed_mask)
        rows = channel_linear(self.head, outputs.last_hidden_state)  # (B, P, V, S): column p of row s is step s * P + p
        predictions = rows.permute(0, 3, 1, 2).flatten(1, 2)[:, : self.config.prediction_length]
        predictions = predictions.to(outputs.loc.dtype) * outputs.scale + outputs.loc
        loss = None
        if future_values is not None:
            for name, given in (("future_values", future_values), ("future_observed_mask", future_observed_mask)):
                check_same_shape(name, given, predictions.shape, "(batch, prediction_length, num_input_channels)")
            counted = None if future_observed_mask is None else future_observed_mask.bool()
            loss = masked_mse(predictions, future_values, counted)
        return TPGNForPredictionOutput(loss=loss, prediction_outputs=predictions, loc=outputs.loc, scale=outputs.scale)


__all__ = [
    "PGNLayer",
    "TPGNForPrediction",
    "TPGNForPredictionOutput",
    "TPGNModel",
    "TPGNModelOutput",
    "TPGNPreTrainedModel",
]
