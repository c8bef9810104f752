"""Configuration of iTransformer.

Paper: "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting", arXiv:2310.06625.
Reference: https://github.com/thuml/iTransformer (and the same authors' Time-Series-Library for the other heads).
Field names are Transformers' and, for what is particular to time series, PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization, check_transformer


def _presets() -> dict[str, dict[str, Any]]:
    """The authors' scripts, as `<data>-<horizon>`; every one looks back 96 steps and has 8 heads."""
    presets = {}

    def add(data: str, channels: int, horizons: tuple[int, ...], layers: int, width: int, **fields: Any) -> None:
        for horizon in horizons:
            presets[f"{data}-{horizon}"] = {
                "num_input_channels": channels,
                "prediction_length": horizon,
                "num_hidden_layers": layers,
                "hidden_size": width,
                "intermediate_size": width,
                **fields,
            }

    # The scripts never set a frequency, so quarter-hourly, ten-minutely and daily data get the four hourly features too.
    long, hourly, raw = (96, 192, 336, 720), {"num_time_features": 4}, {"scaling": None}
    add("etth1", 7, long[:2], layers=2, width=256, **hourly)
    add("etth1", 7, long[2:], layers=2, width=512, **hourly)
    add("etth2", 7, long, layers=2, width=128, **hourly)
    add("ettm1", 7, long, layers=2, width=128, **hourly)
    add("ettm2", 7, long, layers=2, width=128, **hourly)
    add("exchange", 8, long, layers=2, width=128, **hourly)
    add("ecl", 321, long, layers=3, width=512, **hourly)
    add("traffic", 862, long, layers=4, width=512, **hourly)
    add("weather", 21, long, layers=3, width=512, **hourly)
    add("solar", 137, long, layers=2, width=512)
    add("pems03", 358, (12, 24, 48, 96), layers=4, width=512)
    add("pems04", 307, (12, 24, 48, 96), layers=4, width=1024, **raw)
    add("pems07", 883, (12, 24), layers=2, width=512, **raw)
    add("pems07", 883, (48, 96), layers=4, width=512, **raw)
    add("pems08", 170, (12, 24), layers=2, width=512)
    add("pems08", 170, (48, 96), layers=4, width=512, **raw)
    return presets


@strict
class ITransformerConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes and habits of an iTransformer. `ITransformerConfig.from_preset("etth1-96")` gives a published one.

    Args:
        context_length: time steps that the model reads; the width of a token before embedding, fixed by the weights.
        prediction_length: time steps that `ITransformerForPrediction` forecasts.
        num_input_channels: number of variates. Only `ITransformerForTimeSeriesClassification` is tied to it; the other
            classes take any number.
        num_time_features: calendar features per step with which the model was trained (see
            `hf_ext.data.time_series.calendar_features`); 0 for none. Nothing in the weights depends on it: the forecasting
            pipeline reads it to build `past_time_features`.
        hidden_size, num_hidden_layers, num_attention_heads: as usual. A head is `hidden_size // num_attention_heads` wide;
            where that leaves a remainder, queries, keys and values are narrower than `hidden_size`.
        intermediate_size: width of the feed-forward network; None or 0 means `4 * hidden_size`.
        hidden_act: activation of the feed-forward network; the authors use "gelu" (exact) and "relu".
        dropout: probability after the embedding, on attention weights, after attention, and twice in the feed-forward
            network.
        scaling: "std" standardises each variate of each window and restores its level and scale after the head; None leaves
            values as they are (PEMS04, PEMS07 and the authors' classification head).
        layer_norm_eps: of every LayerNorm.
        loss_channels: indices of the variates on which `ITransformerForPrediction` takes its loss; None means all, `[-1]`
            is the authors' "MS" mode.
        channel_means, channel_stds: mean and standard deviation of each variate over the training data, if the model was
            trained on standardised data. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, more heads than `hidden_size`, a probability outside [0, 1), an unknown `scaling` or
            `hidden_act`, or means and standard deviations that do not go together.
    """

    model_type = "itransformer"
    attribute_map = {"d_model": "hidden_size", "ffn_dim": "intermediate_size", "activation_function": "hidden_act"}
    keys_to_ignore_at_inference = ["loc", "scale", "hidden_states", "attentions"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = _presets()

    context_length: int = 96
    prediction_length: int = 96
    num_input_channels: int = 7
    num_time_features: int = 0
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    dropout: float | int = 0.1
    scaling: str | None = "std"
    layer_norm_eps: float = 1e-5
    loss_channels: list[int] | None = None
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        super().__post_init__(**kwargs)
        check_at_least(
            self,
            1,
            "context_length",
            "prediction_length",
            "num_input_channels",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
        check_at_least(self, 0, "num_time_features")
        if self.num_attention_heads > self.hidden_size:
            raise ValueError(
                f"`num_attention_heads` must be at most `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )
        if self.scaling not in ("std", None):
            raise ValueError(f'`scaling` must be "std" or None, got {self.scaling!r}')
        if self.loss_channels is not None and not self.loss_channels:
            raise ValueError("`loss_channels` must name at least one variate, or be None for all, got []")
        check_transformer(self)
        check_standardization(self)


__all__ = ["ITransformerConfig"]
