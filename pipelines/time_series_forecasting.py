"""`pipeline("time-series-forecasting")`: a table of the past in, a table of the future out.

Serves every model of `AutoModelForTimeSeriesPrediction`: ours, and upstream's PatchTST, PatchTSMixer and TimesFM. Needs pandas
(`pip install hf-ext[data]`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from hf_ext.data.time_series import (
    Standardization,
    calendar_entries,
    calendar_features,
    day_features,
    read_time_series,
)
from hf_ext.data.traffic import read_matrix
from hf_ext.layers.graph import adjacency_from_distances

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)


# What forward calls the mask of values that are not missing
MASKS = ("past_observed_mask", "observed_mask")
# pandas' frequency codes of which TimesFM (arXiv 2310.10688) wants to know that they are slow; all others are 0
TIMESFM_FREQUENCIES = {"W": 1, "ME": 1, "MS": 1, "QE": 2, "QS": 2, "YE": 2, "YS": 2}


@dataclass
class _Request:
    """What is needed to write the forecast the way the history was written."""

    future: pd.Index
    columns: pd.Index
    standardization: Standardization
    array_ndim: int | None


@dataclass
class _Stream:
    """What is kept of a series between a call and `update`."""

    frame: pd.DataFrame
    array_ndim: int | None
    standardization: Standardization
    arguments: dict[str, Any]


class TimeSeriesForecastingPipeline(Pipeline):
    """Continues a multivariate series.

    ```python
    >>> import hf_ext, pandas as pd
    >>> from transformers import pipeline

    >>> forecaster = pipeline("time-series-forecasting", model="path/to/itransformer")
    >>> forecaster("history.csv", prediction_length=12)
    >>> forecaster.update("rows that came since.csv")
    ```

    A call takes a CSV file's path, a pandas DataFrame or Series, a dict of columns, or a (time, variates) or (time,) array, and
    gives a DataFrame that continues the time index, or for an array an array; a list of any of these gives a list. Arguments:

    - `prediction_length`: steps to forecast; by default the model's. Models that roll forward (GPHT, STTN's residual form) take any
      number, others at most their own.
    - `time_column`: the column with the time stamps; see `hf_ext.data.time_series.read_time_series`.
    - `frequency`: pandas frequency of the stamps, "h" or "MS" for example; by default inferred. With it, steps that are left out
      in the history are taken as missing.
    - `adjacency`: for models of a road network, the weights between sensors, which are the columns: a CSV file's path, a DataFrame
      (brought into the order of the columns by its names) or a (sensors, sensors) array. `distances` does the same with metres along
      the road, of which weights are made as in `hf_ext.layers.graph.adjacency_from_distances`.
    - `return_adjacency`: gives `{"forecast": ..., "adjacency": ...}`, the second the graph that the model itself learned or
      extended, as a DataFrame that `adjacency_plot` draws.

    The last `context_length` rows are the context. NaN marks missing values and reaches the model as `past_observed_mask`.
    Values are standardised per column before, and restored after, with `config.channel_means` and `config.channel_stds` if
    the configuration has one for each column, else with mean and standard deviation of the history given. Where the
    configuration says that the model was trained with calendar features (`num_time_features`), they are made from the stamps.

    Raises:
        ValueError: what `read_time_series` refuses, fewer rows than the context has, a column without any value in the context,
            missing values for a model that has no mask for them, stamps that are not evenly spaced, no stamps for a model that needs
            calendar features, a `prediction_length` beyond the model's, a graph that does not fit the columns or the model.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.accepted = set(inspect.signature(self.model.forward).parameters)
        if not {"past_values", "future_values"} <= self.accepted:
            raise ValueError(
                f"{type(self.model).__name__} does not take `past_values` and `future_values`; this pipeline serves forecasting models"
            )
        self.mask = next((name for name in MASKS if name in self.accepted), None)
        # TimesFM: a list of single series, of any length up to the context
        self.univariate = hasattr(self.model.config, "horizon_length")
        self.stream: _Stream | None = None

    @property
    def horizon(self) -> int:
        config = self.model.config
        return config.horizon_length if self.univariate else config.prediction_length

    def __call__(self, series: Any, **kwargs: Any) -> Any:
        self.stream = None
        forecast = super().__call__(series, **kwargs)
        if isinstance(series, list):
            self.stream = None
        return forecast

    def update(self, new_rows: Any, prediction_length: int | None = None) -> pd.DataFrame | np.ndarray:
        """Forecasts again after `new_rows`, given in the form of the series of the last call, which must have been a single one.

        The context and the standardisation of the first call are kept, so a stream of any length takes constant memory. The model
        reads the whole context anew.

        Raises:
            ValueError: no call came before, other columns, or rows that do not follow the last ones.
        """
        import pandas as pd

        if (stream := self.stream) is None:
            raise ValueError("`update` continues the last call's series: call the pipeline with one series first")
        rows, array_ndim = _read(new_rows, stream.arguments.get("time_column"))
        if array_ndim != stream.array_ndim or list(rows.columns) != list(stream.frame.columns):
            raise ValueError(
                f"New rows must have the form of the series before: columns {list(stream.frame.columns)}, got {list(rows.columns)}"
            )
        last = stream.frame.index[-1]
        if array_ndim is not None:
            rows.index += last + 1
        if rows.index[0] <= last:
            raise ValueError(f"New rows must come after {last}, the first is of {rows.index[0]}")
        frame = pd.concat([stream.frame, rows])
        arguments = stream.arguments | ({} if prediction_length is None else {"prediction_length": prediction_length})
        return self(frame, **arguments, stream=stream)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        allowed = ("prediction_length", "time_column", "frequency", "adjacency", "distances", "return_adjacency")
        if unknown := sorted(set(kwargs) - set(allowed) - {"stream"}):
            raise ValueError(f"This pipeline has no argument {', '.join(unknown)}, only {', '.join(allowed)}")
        given = {name: value for name, value in kwargs.items() if value is not None}
        rolls = "prediction_length" in given and "prediction_length" in self.accepted
        return (
            given,
            {"prediction_length": given["prediction_length"]} if rolls else {},
            {"return_adjacency": given["return_adjacency"]} if "return_adjacency" in given else {},
        )

    def preprocess(
        self,
        series: Any,
        prediction_length: int | None = None,
        time_column: str | None = None,
        frequency: str | None = None,
        adjacency: Any = None,
        distances: Any = None,
        return_adjacency: bool = False,
        stream: _Stream | None = None,
    ) -> dict[str, Any]:
        config = self.model.config
        steps = self.horizon if prediction_length is None else prediction_length
        if steps < 1 or (steps > self.horizon and "prediction_length" not in self.accepted):
            raise ValueError(f"`prediction_length` must be between 1 and the model's {self.horizon}, got {steps}")
        frame, array_ndim = _read(series, time_column) if stream is None else (series, stream.array_ndim)
        frame, ahead = _continue(frame, max(steps, self.horizon), frequency)
        future = ahead[:steps]
        context = frame.iloc[-config.context_length :]
        if len(context) < config.context_length and not self.univariate:
            raise ValueError(f"The model reads {config.context_length} steps, the series has only {len(frame)}")
        observed = context.notna().to_numpy()
        if empty := context.columns[~observed.any(axis=0)].tolist():
            raise ValueError(f"No value in the last {len(context)} steps of {', '.join(map(str, empty))}")
        if missing := int((~observed).sum()):
            self._accept_missing(missing, observed.size)

        standardization = stream.standardization if stream else self._standardization(frame.to_numpy())
        values = np.nan_to_num(standardization.apply(context.to_numpy()))
        inputs = {"past_values": torch.from_numpy(values)[None].to(self.model.dtype)}
        if self.mask is not None:
            inputs[self.mask] = torch.tensor(observed)[None]
        if number := getattr(config, "num_time_features", 0):
            looked_up = getattr(config, "calendar_embedding", "linear") != "linear"
            features = calendar_entries if looked_up else calendar_features
            for name, index in (("past_time_features", context.index), ("future_time_features", ahead)):
                if name in self.accepted:
                    inputs[name] = torch.from_numpy(features(index, number))[None]
        if "adjacency" in self.accepted:
            self._add_day(inputs, context.index)
        if distances is not None:
            weights = adjacency_from_distances(self._matrix("distances", distances, frame.columns))
            inputs["adjacency"] = weights[None].to(self.model.dtype)
        elif adjacency is not None:
            weights = self._matrix("adjacency", adjacency, frame.columns)
            inputs["adjacency"] = weights[None].to(self.model.dtype)
        if "freq" in self.accepted:
            inputs["freq"] = torch.tensor([[_timesfm_frequency(future)] * len(frame.columns)])
        arguments = {
            "time_column": time_column,
            "frequency": frequency or getattr(future, "freq", None),
            "prediction_length": prediction_length,
            "adjacency": adjacency,
            "distances": distances,
            "return_adjacency": return_adjacency,
        }
        self.stream = _Stream(context, array_ndim, standardization, arguments)
        return inputs | {"request": _Request(future, frame.columns, standardization, array_ndim)}

    def _accept_missing(self, missing: int, total: int) -> None:
        if self.mask is None:
            raise ValueError(
                f"{missing} of the last {total} values are missing, and {type(self.model).__name__} has no way to be told so: "
                "fill them first, for example with pandas' `interpolate`"
            )
        logger.warning(f"{missing} of the last {total} values are missing; the model is told so")

    def _add_day(self, inputs: dict[str, Any], index: pd.Index) -> None:
        """Models of a graph that read three values per sensor get the time of day and the day of the week besides (LargeST)."""
        import pandas as pd

        channels = self.model.config.num_input_channels
        if channels == 1:
            return
        if channels != 3 or not isinstance(index, pd.DatetimeIndex):
            raise ValueError(
                f"The model reads {channels} values per sensor; from a table with time stamps come 3 (value, time of day, day of week), "
                "without stamps 1"
            )
        day = torch.from_numpy(day_features(index)).to(inputs["past_values"].dtype)
        values = inputs["past_values"][..., None]
        inputs["past_values"] = torch.cat((values, day[None, :, None].expand(*values.shape[:3], -1)), -1)
        if self.mask is not None:
            inputs[self.mask] = torch.nn.functional.pad(inputs[self.mask][..., None], (0, channels - 1), value=True)

    def _matrix(self, name: str, given: Any, columns: pd.Index) -> torch.Tensor:
        """(columns, columns) float64, 0 or above, in the order of the columns"""
        import pandas as pd

        if "adjacency" not in self.accepted:
            raise ValueError(f"{type(self.model).__name__} takes no `{name}`: it is no model of a graph")
        if isinstance(given, (str, Path)):
            given = read_matrix(given)
        elif isinstance(given, pd.DataFrame) and set(given.index) == set(columns) == set(given.columns):
            given = given.loc[columns, columns]
        matrix = torch.as_tensor(np.array(given, dtype=np.float64))
        if matrix.shape != (len(columns), len(columns)) or not matrix.isfinite().all() or (matrix < 0).any():
            raise ValueError(
                f"`{name}` must hold finite numbers, 0 or above, between the {len(columns)} columns, got {tuple(matrix.shape)}"
            )
        return matrix

    def _standardization(self, values: np.ndarray) -> Standardization:
        means, stds = (getattr(self.model.config, f"channel_{name}", None) for name in ("means", "stds"))
        for_all = means is not None and len(means) == 1 and "adjacency" in self.accepted  # sensors share one
        if means is not None and (for_all or len(means) == values.shape[1]):
            return Standardization(*(np.broadcast_to(np.array(x), values.shape[1:]) for x in (means, stds)))
        if means is not None:
            logger.warning(
                f"The configuration knows mean and standard deviation of {len(means)} columns, the series has "
                f"{values.shape[1]}: those of the series are taken instead"
            )
        return Standardization.fit(values)

    def _forward(self, model_inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        request = model_inputs.pop("request")
        if self.univariate:
            return {"forecast": self._forward_each(**model_inputs), "request": request}
        graph = model_inputs.get("adjacency")
        if graph is not None and (graph == graph[:1]).all():
            model_inputs["adjacency"] = graph[0]  # one graph for the whole batch
        outputs = self.model(**model_inputs, **parameters)
        if "prediction_outputs" not in outputs:
            raise ValueError(
                f"{type(self.model).__name__} gives no `prediction_outputs`; it is not a forecasting model"
            )
        forecast = outputs.prediction_outputs
        if isinstance(
            forecast, tuple
        ):  # the parameters of a distribution (PatchTST with loss="nll"): the mean of its samples
            forecast = self.model.generate(**model_inputs).sequences.mean(1)
        learned = next((outputs[name] for name in outputs if name.endswith("_adjacency")), None)
        if learned is not None:
            learned = learned.expand(len(forecast), *learned.shape[-2:])
        return {"forecast": forecast, "request": request} | ({} if learned is None else {"adjacency": learned})

    def _forward_each(self, past_values: torch.Tensor, freq: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, time, columns) -> (batch, horizon, columns), each column a series of its own."""
        frequencies = {} if freq is None else {"freq": freq.flatten().tolist()}
        series = list(past_values.transpose(1, 2).flatten(0, 1))
        return self.model(series, **frequencies).mean_predictions.unflatten(0, (len(past_values), -1)).transpose(1, 2)

    def postprocess(self, model_outputs: dict[str, Any], return_adjacency: bool = False) -> Any:
        import pandas as pd

        request = model_outputs["request"]
        steps = len(request.future)
        forecast = model_outputs["forecast"][0, :steps].double().numpy().reshape(steps, -1)
        known, given = forecast.shape[1], request.standardization  # a model may forecast the last columns alone
        forecast = Standardization(given.mean[-known:], given.std[-known:]).undo(forecast)
        if request.array_ndim is None:
            forecast = pd.DataFrame(forecast, index=request.future, columns=request.columns[-known:])
        elif request.array_ndim == 1:
            forecast = forecast[:, 0]
        if not return_adjacency:
            return forecast
        if "adjacency" not in model_outputs:
            raise ValueError(f"{type(self.model).__name__} learns no adjacency that it could return")
        weights = model_outputs["adjacency"][0].double().numpy()
        names = [*request.columns, *(f"virtual {n + 1}" for n in range(len(weights) - len(request.columns)))]
        return {"forecast": forecast, "adjacency": pd.DataFrame(weights, index=names, columns=names)}

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


def _timesfm_frequency(stamps: pd.Index) -> int:
    code = getattr(getattr(stamps, "freq", None), "rule_code", "").split("-")[0]
    return TIMESFM_FREQUENCIES.get(code, 0)


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


def adjacency_plot(adjacency: pd.DataFrame) -> Figure:
    """A heat map of the weights between sensors, from the row's sensor to the column's.

    Needs matplotlib (`pip install hf-ext[data]`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(adjacency.to_numpy(), cmap="viridis"), ax=axes, label="weight")
    for axis, names in ((axes.xaxis, adjacency.columns), (axes.yaxis, adjacency.index)):
        step = -(-len(names) // 30)  # what can be read
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]], fontsize="x-small")
    axes.xaxis.set_tick_params(rotation=90)
    return figure
