"""GPHT: stages of causal Transformers, each of which predicts what the stages before it left unexplained.

Paper: "Generative Pretrained Hierarchical Transformer for Time Series Forecasting", arXiv:2402.16516 (KDD 2024).
Reference: https://github.com/icantnamemyself/GPHT.

Series are taken one variate at a time and cut into tokens of `token_length` steps. A stage sees them max-pooled, coarse stages
first, and predicts from each token the steps of the next one; the next stage works on what is left. Training is next-token
prediction over the whole window, so one model forecasts any horizon: each forecast token is appended and the window moves on.

Differences from the reference, on purpose:
- The feed-forward network is two `Linear`s instead of two 1x1 convolutions (the same arithmetic).
- A window that is no multiple of a token loses its oldest steps; the reference's subtraction fails there.
- Missing values are told apart by `past_observed_mask`.
- Level, scale and residuals are in the precision of the input, so a half-precision model still forecasts series of any size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.dropout import Dropout
from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.positions import sinusoid_positions
from hf_ext.layers.post_norm import PostNormLayer, SelfAttention
from hf_ext.layers.series import check_same_shape, masked_mse, standardize_window

from .configuration_gpht import GPHTConfig


@dataclass
class GPHTModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, variates, tokens, hidden_size), the last stage's tokens after its LayerNorm.
        stage_hidden_states: the same of every stage, the coarsest first.
        token_predictions: (batch, time, variates), in the units of `past_values`: entry t is step t + token_length.
        hidden_states: the embeddings of the first stage and the output of every layer of every stage,
            (batch * variates, tokens, hidden_size) each, with `output_hidden_states=True`.
        attentions: per layer (batch * variates, heads, tokens, tokens), with `output_attentions=True`.
        loc, scale: (batch, 1, variates), what the window was standardised with.
    """

    last_hidden_state: torch.FloatTensor | None = None
    stage_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    token_predictions: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


@dataclass
class GPHTForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error of `token_predictions`, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, variates), in the units of `past_values`.
        token_predictions, stage_hidden_states, hidden_states, attentions, loc, scale: as in `GPHTModelOutput`, of the given window.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    token_predictions: torch.FloatTensor | None = None
    stage_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    loc: torch.FloatTensor | None = None
    scale: torch.FloatTensor | None = None


class GPHTEmbeddings(nn.Module):
    """Tokens of pooled steps, mapped to `hidden_size` without a bias, plus their positions."""

    def __init__(self, config: GPHTConfig, pooling_rate: int):
        super().__init__()
        self.patch_length = config.token_length // pooling_rate
        self.pool = nn.MaxPool1d(pooling_rate) if pooling_rate > 1 else nn.Identity()
        self.value_embedding = nn.Linear(self.patch_length, config.hidden_size, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, series: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(series, time), (tokens, hidden_size) -> (series, tokens, hidden_size)"""
        patches = self.pool(series).unflatten(1, (-1, self.patch_length)).to(positions.dtype)
        return self.dropout(self.value_embedding(patches) + positions)


class GPHTStage(nn.Module):
    """One level of the hierarchy (section 4.3): from each token of the residual, the steps of the token after it."""

    def __init__(self, config: GPHTConfig, pooling_rate: int):
        super().__init__()
        self.embeddings = GPHTEmbeddings(config, pooling_rate)
        self.layers = nn.ModuleList([PostNormLayer(config, is_causal=True) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.forecast_head = nn.Linear(config.hidden_size, config.token_length)

    def forward(
        self,
        residual: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(series, time) -> tokens (series, tokens, hidden_size) and predictions (series, time), those of step t at t - token_length"""
        tokens = self.embeddings(residual, positions)
        for layer in self.layers:
            tokens = layer(tokens, attention_mask, **kwargs)
        tokens = self.layernorm(tokens)
        return tokens, self.forecast_head(tokens).flatten(1).to(residual.dtype)


class GPHTPreTrainedModel(PreTrainedModel):
    config: GPHTConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPHTEmbeddings", "PostNormLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": PostNormLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation everywhere, as in the reference."""
        if isinstance(module, nn.Linear):
            init_conv_as_torch(module)
        else:
            super()._init_weights(module)


class GPHTModel(GPHTPreTrainedModel):
    """The hierarchy: one pass over a window, which predicts every token of it but the first, and the one that follows."""

    def __init__(self, config: GPHTConfig):
        super().__init__(config)
        self.stages = nn.ModuleList([GPHTStage(config, rate) for rate in config.pooling_rates])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPHTModelOutput:
        r"""
        Args:
            past_values: (batch, time, variates), any number of variates, a token of time or more; usually standardised over the
                training data. Where time is no multiple of `token_length`, the oldest steps are left out, here and in
                `token_predictions`. Never written to.
            past_observed_mask: same shape, 1 where a value was observed and 0 where it is missing. What stands in
                `past_values` under a 0 does not matter, NaN included; the model sees the variate's mean there.

        Raises:
            ValueError: a tensor of another rank or shape, or a window shorter than a token.
        """
        past_values, past_observed_mask = self._whole_tokens(past_values, past_observed_mask)
        values, loc, scale = standardize_window(past_values, past_observed_mask)
        batch, length, variates = values.shape
        shift = self.config.token_length

        residual = values.transpose(1, 2).flatten(0, 1)  # (B, L, V) -> (B * V, L)
        # A LayerNorm keeps the model's floating-point type even where 8-bit loading changes that of the Linears.
        dtype = self.stages[0].layernorm.weight.dtype
        positions = sinusoid_positions(length // shift, self.config.hidden_size, values.device).to(dtype)
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=positions.expand(batch * variates, -1, -1),
            attention_mask=None,
            past_key_values=None,
        )

        total, stage_hidden_states = 0, []
        for stage in self.stages:
            tokens, predictions = stage(residual, positions, attention_mask, **kwargs)
            total = total + predictions
            stage_hidden_states.append(tokens.unflatten(0, (batch, variates)))
            if self.config.subtract_predictions:  # eq. 5: the prediction of step t stands `shift` steps earlier
                residual = residual - nn.functional.pad(predictions[:, :-shift], (shift, 0))
        token_predictions = total.unflatten(0, (batch, variates)).transpose(1, 2) * scale + loc
        return GPHTModelOutput(
            last_hidden_state=stage_hidden_states[-1],
            stage_hidden_states=tuple(stage_hidden_states),
            token_predictions=token_predictions,
            loc=loc,
            scale=scale,
        )

    def _whole_tokens(
        self, past_values: torch.Tensor, observed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Checks shapes, and leaves out the oldest steps up to a multiple of a token."""
        length = self.config.token_length
        if past_values.ndim != 3 or past_values.shape[1] < length or past_values.shape[2] < 1:
            raise ValueError(
                f"`past_values` must be (batch, time, variates) with time of `token_length` = {length} or more, "
                f"got {tuple(past_values.shape)}"
            )
        check_same_shape("past_observed_mask", observed, past_values.shape, "of the shape of `past_values`")
        if not past_values.is_floating_point():
            past_values = past_values.to(self.stages[0].layernorm.weight.dtype)
        start = past_values.shape[1] % length
        return past_values[:, start:], None if observed is None else observed[:, start:]


class GPHTForPrediction(GPHTPreTrainedModel):
    """Forecasts any horizon, a token at a time (section 4.4).

    ```python
    >>> from hf_ext.models.gpht import GPHTConfig, GPHTForPrediction

    >>> model = GPHTForPrediction(GPHTConfig.from_preset("gpht-small")).eval()
    >>> model(past_values=torch.randn(2, 336, 7), prediction_length=100).prediction_outputs.shape
    torch.Size([2, 100, 7])
    ```
    """

    def __init__(self, config: GPHTConfig):
        super().__init__(config)
        self.model = GPHTModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        prediction_length: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPHTForPredictionOutput:
        r"""
        Args:
            past_values, past_observed_mask: as in `GPHTModel`.
            future_values: (batch, `token_length` or more, variates). With them the loss is the mean squared error of every token's
                prediction: the window from its second token on, and the first `token_length` future steps.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss; what the past mask
                hides does not either.
            prediction_length: steps to forecast, 1 or more; `token_length` when None. Beyond a token the window moves on over its own
                forecasts, one pass for each further token, with level and scale taken anew.

        Raises:
            ValueError: a tensor of another rank or shape, a window shorter than a token, or no step to forecast.
        """
        token = self.config.token_length
        steps = token if prediction_length is None else prediction_length
        if steps < 1:
            raise ValueError(f"`prediction_length` must be 1 or more, got {steps}")
        outputs = self.model(past_values, past_observed_mask, **kwargs)
        loss = None
        if future_values is not None:
            loss = self._loss(
                outputs.token_predictions, past_values, past_observed_mask, future_values, future_observed_mask
            )

        forecasts, window, observed = [outputs.token_predictions[:, -token:]], past_values, past_observed_mask
        while len(forecasts) * token < steps:
            window = torch.cat([window[:, token:], forecasts[-1]], dim=1)
            if observed is not None:
                observed = torch.cat([observed[:, token:], torch.ones_like(observed[:, -token:])], dim=1)
            forecasts.append(self.model(window, observed).token_predictions[:, -token:])
        return GPHTForPredictionOutput(
            loss=loss,
            prediction_outputs=torch.cat(forecasts, dim=1)[:, :steps],
            token_predictions=outputs.token_predictions,
            stage_hidden_states=outputs.stage_hidden_states,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loc=outputs.loc,
            scale=outputs.scale,
        )

    def _loss(
        self,
        predictions: torch.Tensor,
        past_values: torch.Tensor,
        past_observed: torch.Tensor | None,
        future_values: torch.Tensor,
        future_observed: torch.Tensor | None,
    ) -> torch.Tensor:
        token, (batch, length, variates) = self.config.token_length, predictions.shape
        given = tuple(future_values.shape)
        if len(given) != 3 or (given[0], given[2]) != (batch, variates) or given[1] < token:
            raise ValueError(
                f"`future_values` must be (batch, `token_length` or more, variates) = ({batch}, {token} or more, {variates}), got {given}"
            )
        check_same_shape("future_observed_mask", future_observed, given, "of the shape of `future_values`")

        def shifted(past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
            return torch.cat([past, future[:, :token].to(past)], dim=1)[:, -length:]

        counted = None
        if past_observed is not None or future_observed is not None:
            counted = shifted(
                torch.ones_like(past_values, dtype=torch.bool) if past_observed is None else past_observed.bool(),
                torch.ones_like(future_values, dtype=torch.bool) if future_observed is None else future_observed,
            )
        return masked_mse(predictions, shifted(past_values, future_values), counted)


__all__ = [
    "GPHTForPrediction",
    "GPHTForPredictionOutput",
    "GPHTModel",
    "GPHTModelOutput",
    "GPHTPreTrainedModel",
]
