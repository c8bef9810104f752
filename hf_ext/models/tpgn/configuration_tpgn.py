"""Configuration of TPGN.

Paper: "PGN: The RNN's New Successor is Effective for Long-Range Time Series Forecasting", arXiv:2409.17703.
Reference: https://github.com/Water2sea/TPGN. Field names are Transformers' and, for what is particular to time series, PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization

HORIZONS = (168, 336, 720, 1440)


def _presets() -> dict[str, dict[str, Any]]:
    """The published models, as `<data>-<horizon>`: the target column only, a week of hours back, a day the period."""
    widths = {  # data -> (hidden_size for each horizon, scaling)
        "ecl": ((32, 32, 32, 32), None),
        "traffic": ((128, 128, 256, 256), "std"),
        "etth1": ((2, 2, 2, 8), "std"),
        "etth2": ((8, 8, 8, 8), None),
        "weather": ((4, 4, 4, 4), None),
    }
    return {
        f"{data}-{horizon}": {"prediction_length": horizon, "hidden_size": size, "scaling": scaling}
        for data, (sizes, scaling) in widths.items()
        for horizon, size in zip(HORIZONS, sizes)
    }


@strict
class TPGNConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes and habits of a TPGN. `TPGNConfig.from_preset("etth1-168")` gives a published one.

    Args:
        context_length: time steps that the model reads, fixed by the weights: two or more whole periods.
        prediction_length: time steps that it forecasts. The weights give whole periods; what is beyond is cut off.
        period: steps that make a row when the series is folded; 24 for hours of days.
        num_input_channels: number of variates. Each has weights of its own.
        num_time_features: calendar features per step (see `hf_ext.data.time_series.calendar_features`), which the weights depend on:
            4 for hourly data, 5 with minutes, 3 for days, 0 for none.
        hidden_size: width of each variate's states.
        scaling: "std" standardises each variate of each window and restores its level and scale at the end; None leaves
            values as they are.
        use_short_branch: whether the branch of patches is there. False is the paper's ablation: the output reads the long branch
            alone.
        channel_means, channel_stds: mean and standard deviation of each variate over the training data, if the model was
            trained on standardised data. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, a `context_length` that is not two or more whole periods, an unknown `scaling`, or means and
            standard deviations that do not go together.
    """

    model_type = "tpgn"
    attribute_map = {"d_model": "hidden_size"}
    keys_to_ignore_at_inference = ["loc", "scale"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = _presets()

    context_length: int = 168
    prediction_length: int = 168
    period: int = 24
    num_input_channels: int = 1
    num_time_features: int = 4
    hidden_size: int = 32
    scaling: str | None = None
    use_short_branch: bool = True
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        check_at_least(self, 1, "prediction_length", "period", "num_input_channels", "hidden_size")
        check_at_least(self, 0, "num_time_features")
        if self.context_length < 2 * self.period or self.context_length % self.period:
            raise ValueError(
                f"`context_length` must be a multiple of `period` ({self.period}), twice or more, got {self.context_length}"
            )
        if self.scaling not in ("std", None):
            raise ValueError(f'`scaling` must be "std" or None, got {self.scaling!r}')
        check_standardization(self)

    @property
    def num_rows(self) -> int:
        """Periods that the model reads."""
        return self.context_length // self.period

    @property
    def num_future_rows(self) -> int:
        """Periods that it forecasts, the last one perhaps in part."""
        return -(-self.prediction_length // self.period)


__all__ = ["TPGNConfig"]
