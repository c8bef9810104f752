"""`pipeline("time-series-forecasting")`: a table of the past in, a table of the future out.

Serves models with PatchTST's interface (`past_values`, `past_observed_mask` -> `prediction_outputs`): iTransformer, and
upstream's PatchTST. Needs pandas (`pip install hf-ext[data]`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from hf_ext.data.time_series import Standardization, calendar_features, read_time_series

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)


@dataclass
class _Request:
    """What is needed to write the forecast the way the history was written."""

    future: pd.Index
    columns: pd.Index
    standardization: Standardization
    array_ndim: int | None


class TimeSeriesForecastingPipeline(Pipeline):
    """Continues a multivariate series for up to `model.config.prediction_length` steps.

    ```python
    >>> import hf_ext, pandas as pd
    >>> from transformers import pipeline

    >>> forecaster = pipeline("time-series-forecasting", model="path/to/itransformer")
    >>> forecaster("history.csv", prediction_length=12)
    ```

    A call takes a CSV file's path, a pandas DataFrame or Series, a dict of columns, or a (time, variates) or (time,) array, and
    gives a DataFrame that continues the time index, or for an array an array; a list of any of these gives a list. Arguments:

    - `prediction_length`: steps to forecast; at most, and by default, the model's.
    - `time_column`: the column with the time stamps; see `hf_ext.data.time_series.read_time_series`.
    - `frequency`: pandas frequency of the stamps, "h" or "MS" for example; by default inferred. With it, steps that are left out
      in the history are taken as missing.

    The last `context_length` rows are the context. NaN marks missing values and reaches the model as `past_observed_mask`.
    Values are standardised per column before, and restored after, with `config.channel_means` and `config.channel_stds` if
    the configuration has one for each column, else with mean and standard deviation of the history given. Where the
    configuration says that the model was trained with calendar features (`num_time_features`), they are made from the stamps.

    Raises:
        ValueError: what `read_time_series` refuses, fewer rows than the context has, a column without any value in the context,
            stamps that are not evenly spaced, no stamps for a model that needs calendar features, or a `prediction_length`
            beyond the model's.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not {"past_values", "past_observed_mask"} <= set(inspect.signature(self.model.forward).parameters):
            raise ValueError(
                f"{type(self.model).__name__} does not take `past_values` and `past_observed_mask`; this pipeline serves "
                "forecasting models with PatchTST's interface"
            )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        allowed = ("prediction_length", "time_column", "frequency")
        if unknown := sorted(set(kwargs) - set(allowed)):
            raise ValueError(f"This pipeline has no argument {', '.join(unknown)}, only {', '.join(allowed)}")
        return {name: value for name, value in kwargs.items() if value is not None}, {}, {}

    def preprocess(
        self,
        series: Any,
        prediction_length: int | None = None,
        time_column: str | None = None,
        frequency: str | None = None,
    ) -> dict[str, Any]:
        config = self.model.config
        steps = config.prediction_length if prediction_length is None else prediction_length
        if not 1 <= steps <= config.prediction_length:
            raise ValueError(
                f"`prediction_length` must be between 1 and the model's {config.prediction_length}, got {steps}"
            )
        frame, array_ndim = _read(series, time_column)
        frame, future = _continue(frame, steps, frequency)
        if len(frame) < config.context_length:
            raise ValueError(f"The model reads {config.context_length} steps, the series has only {len(frame)}")
        context = frame.iloc[-config.context_length :]
        observed = context.notna().to_numpy()
        if empty := context.columns[~observed.any(axis=0)].tolist():
            raise ValueError(f"No value in the last {config.context_length} steps of {', '.join(map(str, empty))}")
        if missing := int((~observed).sum()):
            logger.warning(f"{missing} of the last {observed.size} values are missing; the model is told so")

        standardization = self._standardization(frame.to_numpy())
        values = np.nan_to_num(standardization.apply(context.to_numpy()))
        inputs = {
            "past_values": torch.from_numpy(values)[None].to(self.model.dtype),
            "past_observed_mask": torch.tensor(observed)[None],
        }
        if number := getattr(config, "num_time_features", 0):
            inputs["past_time_features"] = torch.from_numpy(calendar_features(context.index, number))[None]
        return inputs | {"request": _Request(future, frame.columns, standardization, array_ndim)}

    def _standardization(self, values: np.ndarray) -> Standardization:
        means, stds = (getattr(self.model.config, f"channel_{name}", None) for name in ("means", "stds"))
        if means is not None and len(means) == values.shape[1]:
            return Standardization(np.array(means), np.array(stds))
        if means is not None:
            logger.warning(
                f"The configuration knows mean and standard deviation of {len(means)} columns, the series has "
                f"{values.shape[1]}: those of the series are taken instead"
            )
        return Standardization.fit(values)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        request = model_inputs.pop("request")
        outputs = self.model(**model_inputs)
        if "prediction_outputs" not in outputs:
            raise ValueError(
                f"{type(self.model).__name__} gives no `prediction_outputs`; it is not a forecasting model"
            )
        forecast = outputs.prediction_outputs
        if isinstance(
            forecast, tuple
        ):  # the parameters of a distribution (PatchTST with loss="nll"): the mean of its samples
            forecast = self.model.generate(**model_inputs).sequences.mean(1)
        return {"forecast": forecast, "request": request}

    def postprocess(self, model_outputs: dict[str, Any]) -> pd.DataFrame | np.ndarray:
        import pandas as pd

        request = model_outputs["request"]
        forecast = model_outputs["forecast"][0, : len(request.future)].double().numpy()
        forecast = request.standardization.undo(forecast)
        if request.array_ndim is not None:
            return forecast if request.array_ndim == 2 else forecast[:, 0]
        return pd.DataFrame(forecast, index=request.future, columns=request.columns)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        """Upstream's, except that it collates without a tokenizer or feature extractor to ask for padding."""
        parameters = preprocess_params, forward_params, postprocess_params
        if batch_size == 1:
            return super().get_iterator(inputs, num_workers, batch_size, *parameters)
        wrapper = PipelineDataset if hasattr(inputs, "__len__") else PipelineIterator
        loader = DataLoader(
            wrapper(inputs, self.preprocess, preprocess_params),
            num_workers=num_workers,
            batch_size=batch_size,
            collate_fn=_collate,
        )
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    if len(widths := sorted({item["past_values"].shape[-1] for item in items})) > 1:
        raise ValueError(f"Series of one batch must have equally many columns, got {widths}; use batch_size=1")
    batch = {name: [item[name] for item in items] for name in items[0]}
    return {name: torch.cat(parts) if torch.is_tensor(parts[0]) else parts for name, parts in batch.items()}


def _read(series: Any, time_column: str | None) -> tuple[pd.DataFrame, int | None]:
    """The series as a frame, and the number of dimensions if it was an array."""
    import pandas as pd

    if not isinstance(series, (np.ndarray, torch.Tensor)):
        return read_time_series(series, time_column), None
    if series.ndim not in (1, 2):
        raise ValueError(
            f"An array must be (time, variates) or (time,), got {tuple(series.shape)}; pass a list for several"
        )
    return read_time_series(pd.DataFrame(np.asarray(series))), series.ndim


def _continue(frame: pd.DataFrame, steps: int, frequency: str | None) -> tuple[pd.DataFrame, pd.Index]:
    """The history on an even grid, and the `steps` stamps that follow it."""
    import pandas as pd

    index = frame.index
    if not isinstance(index, pd.DatetimeIndex):
        if frequency is not None:
            raise ValueError(f"`frequency` ({frequency!r}) needs time stamps, the series has none")
        return frame, _continue_numbers(index, steps)
    if frequency is not None:
        try:
            regular = frame.asfreq(frequency)
        except ValueError:
            raise ValueError(f"`frequency` must be one of pandas' ('h', 'D', 'MS' ...), got {frequency!r}") from None
        if len(lost := index.difference(regular.index)):
            raise ValueError(f"{len(lost)} time stamps are not on a grid of {frequency!r}, the first is {lost[0]}")
        frame = regular
    elif index.freq is None:
        inferred = pd.infer_freq(index) if len(index) > 2 else None
        if inferred is None:
            raise ValueError(_uneven(index))
        frequency = inferred
    offset = pd.tseries.frequencies.to_offset(frequency or index.freq)
    future = pd.date_range(frame.index[-1], periods=steps + 1, freq=offset, name=index.name)[1:]
    return frame, future


def _continue_numbers(index: pd.Index, steps: int) -> pd.Index:
    import pandas as pd

    gaps = np.diff(index.to_numpy())
    if len(gaps) and not np.allclose(gaps, gaps[0]):
        raise ValueError(_uneven(index))
    step = gaps[0] if len(gaps) else 1
    return pd.Index(index[-1] + step * np.arange(1, steps + 1), name=index.name)


def _uneven(index: pd.Index) -> str:
    if len(index) < 3:
        return f"{len(index)} time stamps are too few to tell the frequency: pass `frequency`"
    gaps = index[1:] - index[:-1]
    usual = gaps.value_counts().index[0]
    odd = next((i for i, gap in enumerate(gaps) if gap != usual), 0)
    return (
        f"Time stamps must be evenly spaced: mostly they are {usual} apart, but {index[odd]} is followed by {index[odd + 1]}. "
        "Resample the series, or pass `frequency` to have the gaps taken as missing values"
    )


def forecast_plot(
    history: pd.DataFrame, forecast: pd.DataFrame | Mapping[str, pd.DataFrame], truth: pd.DataFrame | None = None
) -> Figure:
    """One panel per column: the history, the forecast (or several, by name) and, where known, what really came.

    Needs matplotlib (`pip install hf-ext[data]`).
    """
    from matplotlib.figure import Figure

    forecasts = forecast if isinstance(forecast, Mapping) else {"forecast": forecast}
    columns = list(history.columns)
    figure = Figure(figsize=(9, 2.6 * len(columns)), layout="constrained")
    for axes, column in zip(figure.subplots(len(columns), squeeze=False)[:, 0], columns):
        axes.plot(history.index, history[column], color="0.45", label="history")
        if truth is not None:
            axes.plot(truth.index, truth[column], color="black", label="truth")
        for name, frame in forecasts.items():
            axes.plot(frame.index, frame[column], label=name)
        axes.set_title(str(column), loc="left")
    figure.axes[0].legend(loc="upper left", ncols=3, frameon=False)
    return figure
