"""iTransformer: a token is a whole variate.

Paper: "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting", arXiv:2310.06625.
Reference: https://github.com/thuml/iTransformer; the classification and reconstruction heads are from the same authors'
https://github.com/thuml/Time-Series-Library.

One linear map embeds the lookback window of each variate, attention mixes variates, the feed-forward network works on each
series' representation, one linear map gives a whole horizon. There is no position encoding and no mask, so the model is
equivariant to permutations of variates and takes any number of them.

Differences from the reference, on purpose:
- The feed-forward network is two `Linear`s instead of two 1x1 convolutions (the same arithmetic).
- Missing values are told apart by `past_observed_mask`; the reference counts them as zeros. An all-ones mask changes nothing.
- Level and scale are taken in the precision of the input, and the output returns to it, so a half-precision model still
  forecasts series of any size.
- The caller's `past_values` are never written to.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.post_norm import PostNormLayer, SelfAttention
from hf_ext.layers.series import masked_mse, standardize_window

from .configuration_itransformer import ITransformerConfig


@dataclass
class ITransformerModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, variates + time features, hidden_size), after the final LayerNorm.
        hidden_states: the embeddings and the output of each layer, with `output_hidden_states=True`.
        attentions: per layer (batch, heads, tokens, tokens), with `output_attentions=True`.
        loc, scale: (batch, 1, variates), what the window was standardised with.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


@dataclass
class ITransformerForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, variates), in the units of `past_values`.
        hidden_states, attentions, loc, scale: as in `ITransformerModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


@dataclass
class ITransformerForReconstructionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error against `past_values`, on the hidden entries where a mask hides some.
        reconstruction: (batch, context_length, variates), in the units of `past_values`.
        hidden_states, attentions, loc, scale: as in `ITransformerModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


class ITransformerEmbeddings(nn.Module):
    """One token per variate, and one per calendar feature: the same linear map over time for all of them (eq. 1)."""

    def __init__(self, config: ITransformerConfig):
        super().__init__()
        self.value_embedding = nn.Linear(config.context_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: torch.Tensor, time_features: torch.Tensor | None) -> torch.Tensor:
        if time_features is not None:
            values = torch.cat([values, time_features.to(values.dtype)], dim=-1)
        return self.dropout(self.value_embedding(values.transpose(1, 2)))  # (B, L, V+F) -> (B, V+F, D)


class ITransformerPreTrainedModel(PreTrainedModel):
    config: ITransformerConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ITransformerEmbeddings", "PostNormLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the losses are means over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": PostNormLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation everywhere, as in the reference."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class ITransformerModel(ITransformerPreTrainedModel):
    """The variate-token encoder, without a head."""

    def __init__(self, config: ITransformerConfig):
        super().__init__(config)
        self.embeddings = ITransformerEmbeddings(config)
        self.layers = nn.ModuleList([PostNormLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ITransformerModelOutput:
        r"""
        Args:
            past_values: (batch, context_length, variates), any number of variates; usually standardised over the training
                data. Never written to.
            past_observed_mask: same shape, 1 where a value was observed and 0 where it is missing. What stands in
                `past_values` under a 0 does not matter, NaN included; the model sees the variate's mean there.
            past_time_features: (batch, context_length, features) in [-0.5, 0.5]; each becomes a token of its own. A model
                that was trained with them needs them.

        Raises:
            ValueError: a tensor of another rank or length.
        """
        self._check_shapes(past_values, past_observed_mask, past_time_features)
        if not past_values.is_floating_point():
            past_values = past_values.to(self.layernorm.weight.dtype)
        values, loc, scale = standardize_window(past_values, past_observed_mask, self.config.scaling is not None)
        # A LayerNorm keeps the model's floating-point type even where 8-bit loading changes that of the Linears.
        hidden_states = self.embeddings(values.to(self.layernorm.weight.dtype), past_time_features)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return ITransformerModelOutput(last_hidden_state=self.layernorm(hidden_states), loc=loc, scale=scale)

    def _check_shapes(
        self, past_values: torch.Tensor, observed: torch.Tensor | None, time_features: torch.Tensor | None
    ) -> None:
        length = self.config.context_length
        if past_values.ndim != 3 or past_values.shape[1] != length or past_values.shape[2] < 1:
            raise ValueError(
                f"`past_values` must be (batch, context_length = {length}, variates), got {tuple(past_values.shape)}"
            )
        if observed is not None and observed.shape != past_values.shape:
            raise ValueError(
                f"`past_observed_mask` must have the shape of `past_values`, {tuple(past_values.shape)}, "
                f"got {tuple(observed.shape)}"
            )
        if time_features is not None and (time_features.ndim != 3 or time_features.shape[:2] != past_values.shape[:2]):
            raise ValueError(
                f"`past_time_features` must be (batch, context_length, features), ({past_values.shape[0]}, {length}, "
                f"features) here, got {tuple(time_features.shape)}"
            )


def _to_series(tokens: torch.Tensor, outputs: ITransformerModelOutput) -> torch.Tensor:
    """(batch, tokens, time) -> (batch, time, variates): drops calendar tokens and restores level and scale."""
    series = tokens.transpose(1, 2)[..., : outputs.loc.shape[-1]]
    return series * outputs.scale + outputs.loc


class ITransformerForPrediction(ITransformerPreTrainedModel):
    """Forecasts `prediction_length` steps of every variate at once: one linear map from each variate's token (eq. 1).

    ```python
    >>> from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction

    >>> model = ITransformerForPrediction(ITransformerConfig.from_preset("etth1-96")).eval()
    >>> model(past_values=torch.randn(2, 96, 7)).prediction_outputs.shape
    torch.Size([2, 96, 7])
    ```
    """

    def __init__(self, config: ITransformerConfig):
        super().__init__(config)
        self.model = ITransformerModel(config)
        self.head = nn.Linear(config.hidden_size, config.prediction_length)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ITransformerForPredictionOutput:
        r"""
        Args:
            past_values, past_observed_mask, past_time_features: as in `ITransformerModel`.
            future_values: (batch, prediction_length, variates). With them the loss is the mean squared error over all
                variates, or over `config.loss_channels`.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss.

        Raises:
            ValueError: a tensor of another rank or length.
        """
        outputs = self.model(past_values, past_observed_mask, past_time_features, **kwargs)
        predictions = _to_series(self.head(outputs.last_hidden_state), outputs)
        loss = None if future_values is None else self._loss(predictions, future_values, future_observed_mask)
        return ITransformerForPredictionOutput(
            loss=loss,
            prediction_outputs=predictions,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loc=outputs.loc,
            scale=outputs.scale,
        )

    def _loss(
        self, predictions: torch.Tensor, future_values: torch.Tensor, observed: torch.Tensor | None
    ) -> torch.Tensor:
        for name, given in (("future_values", future_values), ("future_observed_mask", observed)):
            if given is not None and given.shape != predictions.shape:
                raise ValueError(
                    f"`{name}` must be (batch, prediction_length, variates) = {tuple(predictions.shape)}, "
                    f"got {tuple(given.shape)}"
                )
        observed = torch.ones_like(predictions, dtype=torch.bool) if observed is None else observed.bool()
        channels = slice(None) if self.config.loss_channels is None else self.config.loss_channels
        return masked_mse(predictions[..., channels], future_values[..., channels], observed[..., channels])


class ITransformerForReconstruction(ITransformerPreTrainedModel):
    """Gives the window back: imputation and anomaly detection (Time-Series-Library).

    For imputation, hide known entries with `past_observed_mask` and train on the loss; afterwards the reconstruction fills
    the entries that are missing. For anomaly detection, pass no mask: where the reconstruction is far off, the series is odd.
    The reference hides entries by zeroing them and lets the zeros count in mean and variance; zeroed `past_values` without a
    mask give exactly that.
    """

    def __init__(self, config: ITransformerConfig):
        super().__init__(config)
        self.model = ITransformerModel(config)
        self.head = nn.Linear(config.hidden_size, config.context_length)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ITransformerForReconstructionOutput:
        r"""
        Args:
            past_values, past_observed_mask, past_time_features: as in `ITransformerModel`.

        The loss needs no label: it is the mean squared error against `past_values`, over all entries without a mask, and with
        one over the entries that it hides and whose value is known (not NaN); 0 where there are none.

        Raises:
            ValueError: a tensor of another rank or length.
        """
        outputs = self.model(past_values, past_observed_mask, past_time_features, **kwargs)
        reconstruction = _to_series(self.head(outputs.last_hidden_state), outputs)
        return ITransformerForReconstructionOutput(
            loss=self._loss(reconstruction, past_values, past_observed_mask),
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loc=outputs.loc,
            scale=outputs.scale,
        )

    @staticmethod
    def _loss(
        reconstruction: torch.Tensor, past_values: torch.Tensor, past_observed_mask: torch.Tensor | None
    ) -> torch.Tensor:
        if past_observed_mask is None:
            return masked_mse(reconstruction, past_values)
        return masked_mse(reconstruction, past_values, ~past_observed_mask.bool() & ~past_values.isnan())


class ITransformerForTimeSeriesClassification(ITransformerPreTrainedModel):
    """One label for a window (Time-Series-Library): GELU and a linear map on the tokens of all variates, side by side.

    The authors train it without window standardisation: pass `scaling=None` in the configuration to do the same.
    """

    def __init__(self, config: ITransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"
        self.model = ITransformerModel(config)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.num_input_channels * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            past_values: (batch, context_length, num_input_channels).
            past_observed_mask: as in `ITransformerModel`.
            labels: (batch,) class indices; the loss is cross-entropy. With `num_labels == 1` or
                `problem_type="multi_label_classification"` it is Transformers' usual one.
            past_time_features: accepted so that one batch serves every head, and not used: this head has no calendar tokens.

        Raises:
            ValueError: another number of variates than `config.num_input_channels`, or a tensor of another rank or length.
        """
        channels = self.config.num_input_channels
        if past_values.shape[-1] != channels:
            raise ValueError(
                f"`past_values` must have `num_input_channels` = {channels} variates: the classification head is tied to "
                f"their number, got {past_values.shape[-1]}"
            )
        outputs = self.model(past_values, past_observed_mask, **kwargs)
        logits = self.head(self.dropout(self.activation(outputs.last_hidden_state)).flatten(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "ITransformerForPrediction",
    "ITransformerForPredictionOutput",
    "ITransformerForReconstruction",
    "ITransformerForReconstructionOutput",
    "ITransformerForTimeSeriesClassification",
    "ITransformerModel",
    "ITransformerModelOutput",
    "ITransformerPreTrainedModel",
]
