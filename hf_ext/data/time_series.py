"""Time series: reading, calendar features, borders, standardisation, windows, and a real series that statsmodels ships.

Calendar features and borders are those of the Informer family of papers (thuml/iTransformer, `utils/timefeatures.py` and
`data_provider/data_loader.py`), so that numbers can be compared with theirs. Needs pandas (`pip install hf-ext[data]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    import pandas as pd

# name -> (attribute of a pandas DatetimeIndex, its smallest value, its range): a feature is (value - smallest) / range - 0.5
CALENDAR = {
    "second": ("second", 0, 59),
    "minute": ("minute", 0, 59),
    "hour": ("hour", 0, 23),
    "weekday": ("dayofweek", 0, 6),
    "day": ("day", 1, 30),
    "dayofyear": ("dayofyear", 1, 365),
    "month": ("month", 1, 11),
    "week": ("week", 1, 52),
}
# The reference's sets differ in size, so a model's `num_time_features` says which one it was trained with.
CALENDAR_SETS = {
    0: (),
    1: ("month",),
    2: ("day", "week"),
    3: ("weekday", "day", "dayofyear"),
    4: ("hour", "weekday", "day", "dayofyear"),
    5: ("minute", "hour", "weekday", "day", "dayofyear"),
    6: ("second", "minute", "hour", "weekday", "day", "dayofyear"),
}
# pandas' frequency codes -> size of the set that the reference gives them
FREQUENCIES = {
    "YE": 0,
    "YS": 0,
    "QE": 1,
    "QS": 1,
    "ME": 1,
    "MS": 1,
    "W": 2,
    "D": 3,
    "B": 3,
    "h": 4,
    "min": 5,
    "s": 6,
}

# Rows at which training, validation and test end: 12, 4 and 4 months of 30 days
ETT_HOURLY_BORDERS = (12 * 30 * 24, 16 * 30 * 24, 20 * 30 * 24)
ETT_MINUTELY_BORDERS = tuple(4 * border for border in ETT_HOURLY_BORDERS)  # a row each quarter of an hour

CLIMATE_BORDERS = (368, 421, 526)  # 70, 10 and 20 per cent of `climate()`; the test part begins in April 1993
CLIMATE_SEASON = 12


def num_calendar_features(frequency: str) -> int:
    """How many calendar features the reference gives series of a pandas frequency: 4 for "h" or "6h", 1 for "MS".

    Raises:
        ValueError: a frequency that pandas does not know, or for which the reference has no features.
    """
    from pandas.tseries.frequencies import to_offset

    try:
        code = to_offset(frequency).rule_code.split("-")[0]
    except ValueError:
        code = None
    if code not in FREQUENCIES:
        raise ValueError(
            f"There are no calendar features for frequency {frequency!r}, only for {', '.join(FREQUENCIES)}"
        )
    return FREQUENCIES[code]


def calendar_features(index: pd.DatetimeIndex, number: int) -> np.ndarray:
    """(time, number) float32 in [-0.5, 0.5]: the reference's set of that size for these stamps.

    4 are hour, weekday (Monday first), day of month, day of year; 5 put the minute first, 6 the second; 3 leave out the hour;
    2 are day of month and week of year; 1 is the month.

    Raises:
        ValueError: a size for which there is no set, or an index that is not of time stamps.
    """
    import pandas as pd

    if number not in CALENDAR_SETS:
        raise ValueError(f"There is no set of {number} calendar features, only of {', '.join(map(str, CALENDAR_SETS))}")
    if not isinstance(index, pd.DatetimeIndex):
        raise ValueError(f"Calendar features need time stamps (a DatetimeIndex), got a {type(index).__name__}")
    features = np.empty((len(index), number), dtype=np.float32)
    for column, name in enumerate(CALENDAR_SETS[number]):
        attribute, smallest, size = CALENDAR[name]
        values = index.isocalendar().week if attribute == "week" else getattr(index, attribute)
        features[:, column] = (np.asarray(values, dtype=np.float64) - smallest) / size - 0.5
    return features


def calendar_entries(index: pd.DatetimeIndex, number: int) -> np.ndarray:
    """(time, number) int64: month, day of month, weekday (Monday is 0), hour and, of 5, the quarter of the hour.

    What the Informer family looks up in tables where it does not use `calendar_features`.

    Raises:
        ValueError: a number other than 4 and 5, or an index that is not of time stamps.
    """
    import pandas as pd

    if number not in (4, 5):
        raise ValueError(f"There are 4 calendar entries, or 5 with quarters of an hour, not {number}")
    if not isinstance(index, pd.DatetimeIndex):
        raise ValueError(f"Calendar entries need time stamps (a DatetimeIndex), got a {type(index).__name__}")
    columns = (index.month, index.day, index.dayofweek, index.hour, index.minute // 15)
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns[:number]], axis=1)


def day_features(index: pd.DatetimeIndex) -> np.ndarray:
    """(time, 2) float32: how much of the day has passed, and of the week in days, both in [0, 1) (liuxu77/LargeST)."""
    passed = (index - index.normalize()).total_seconds() / 86400
    return np.stack((passed, index.dayofweek / 7), axis=1).astype(np.float32)


def read_time_series(source: Any, time_column: str | None = None) -> pd.DataFrame:
    """A frame of float64 columns, ordered by its index of time stamps (or of plain numbers where the source has no time).

    Args:
        source: path or address of a CSV file, pandas DataFrame or Series, or a dict of columns.
        time_column: the column that holds the time stamps, or plain numbers such as years, which stay numbers. By default the
            index if it holds time stamps, else the first column when it is text or dates; without either, rows are numbered.

    Raises:
        ValueError: a file that is missing or no CSV, no rows, no such column, stamps that are no dates or occur twice, a column
            that is not numeric, infinite values. NaN is allowed: it marks a missing value.
    """
    import pandas as pd

    frame = _as_frame(source)
    if time_column is not None and time_column not in frame.columns:
        raise ValueError(f"There is no column {time_column!r} to take the time from; there are {_names(frame.columns)}")
    if isinstance(frame.index, pd.PeriodIndex):
        frame = frame.set_axis(frame.index.to_timestamp())
    if time_column is None and not isinstance(frame.index, pd.DatetimeIndex) and len(frame.columns):
        first = frame.iloc[:, 0]
        time_column = None if pd.api.types.is_numeric_dtype(first) else frame.columns[0]
    if time_column is not None:
        frame = frame.set_index(time_column)
        if not pd.api.types.is_numeric_dtype(frame.index):
            frame.index = _parse_stamps(frame.index, time_column)
    if not len(frame) or not len(frame.columns):
        raise ValueError(f"A time series needs at least one row and one column besides the time, got {frame.shape}")
    if duplicates := frame.index[frame.index.duplicated()].unique().tolist():
        raise ValueError(f"Time stamps must occur once, these occur more often: {_names(duplicates)}")
    if text := [name for name, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]:
        raise ValueError(f"Every column besides the time must be numeric, these are not: {_names(text)}")
    frame = frame.astype("float64").sort_index()
    if infinite := frame.columns[np.isinf(frame.to_numpy()).any(axis=0)].tolist():
        raise ValueError(
            f"Values must be finite (or NaN where they are missing), these columns hold infinity: {_names(infinite)}"
        )
    return frame


def _as_frame(source: Any) -> pd.DataFrame:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, pd.Series):
        return source.to_frame(source.name if source.name is not None else "value")
    if isinstance(source, Mapping):
        try:
            return pd.DataFrame(dict(source))
        except ValueError as error:
            raise ValueError(f"The columns of the dict do not make a table: {error}") from None
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"A time series is a CSV file's path, a pandas DataFrame or a dict of columns, not a {type(source).__name__}"
        )
    try:
        return pd.read_csv(source)
    except FileNotFoundError:
        raise ValueError(f"There is no file '{source}'") from None
    except (ValueError, OSError) as error:  # pandas' parser and encoding errors are ValueErrors
        raise ValueError(f"'{source}' cannot be read as CSV: {str(error).splitlines()[0]}") from None


def _parse_stamps(stamps: pd.Index, name: str) -> pd.DatetimeIndex:
    import pandas as pd

    try:
        parsed = pd.DatetimeIndex(pd.to_datetime(stamps), name=name)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Column {name!r} does not hold time stamps: {str(error).splitlines()[0]}") from None
    if parsed.hasnans:
        raise ValueError(f"Column {name!r} holds {int(parsed.isna().sum())} empty time stamps")
    return parsed


def _names(values: Sequence[Any], limit: int = 5) -> str:
    return ", ".join(str(value) for value in values[:limit]) + (" ..." if len(values) > limit else "")


def read_ett(path: str | Path, borders: tuple[int, int, int] = ETT_HOURLY_BORDERS) -> pd.DataFrame:
    """One of the ETT files (ETTh1.csv ...), checked to reach as far as the test part does."""
    frame = read_time_series(path)
    if len(frame) < borders[-1]:
        raise ValueError(f"'{path}' has {len(frame)} rows, the ETT borders need {borders[-1]}: is it another file?")
    return frame


def share_borders(rows: int, train: float = 0.7, test: float = 0.2) -> tuple[int, int, int]:
    """Rows at which training, validation and test end, by shares: 70/10/20 for custom and Solar data, 60/20/20 for PEMS."""
    if not (train > 0 and test > 0 and train + test <= 1):
        raise ValueError(f"Shares must be above 0 and add to 1 at most, got train={train} and test={test}")
    return int(rows * train), rows - int(rows * test), rows


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation (of the population) per column; a constant column is only centred."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> Standardization:
        """From (time, columns), over what is not NaN."""
        std = np.nanstd(values, axis=0)
        return cls(np.nanmean(values, axis=0), np.where(std > 0, std, 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.std

    def undo(self, values: np.ndarray) -> np.ndarray:
        return values * self.std + self.mean


class ForecastWindows(Dataset):
    """Every window of a series, as the forward arguments of a forecasting model.

    Args:
        values: (time, variates); NaN marks missing values and brings `past_observed_mask` and `future_observed_mask`.
        context_length, prediction_length: steps before and after the moment of the forecast.
        time_features: (time, features), from `calendar_features`; they become `past_time_features` and `future_time_features`.

    Raises:
        ValueError: fewer rows than one window has.
    """

    def __init__(
        self, values: np.ndarray, context_length: int, prediction_length: int, time_features: np.ndarray | None = None
    ):
        if len(values) < context_length + prediction_length:
            raise ValueError(
                f"{len(values)} rows are too few for one window of {context_length} + {prediction_length} steps"
            )
        values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.observed = ~values.isnan() if values.isnan().any() else None
        self.values = values.nan_to_num()
        self.time_features = None if time_features is None else torch.as_tensor(time_features, dtype=torch.float32)
        self.context_length, self.prediction_length = context_length, prediction_length

    def __len__(self) -> int:
        return len(self.values) - self.context_length - self.prediction_length + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        now = index + self.context_length
        past, future = slice(index, now), slice(now, now + self.prediction_length)
        item = {"past_values": self.values[past], "future_values": self.values[future]}
        if self.observed is not None:
            item |= {"past_observed_mask": self.observed[past], "future_observed_mask": self.observed[future]}
        if self.time_features is not None:
            item |= {
                "past_time_features": self.time_features[past],
                "future_time_features": self.time_features[future],
            }
        return item


def split_windows(
    values: np.ndarray,
    borders: tuple[int, int, int],
    context_length: int,
    prediction_length: int,
    time_features: np.ndarray | None = None,
) -> tuple[ForecastWindows, ForecastWindows, ForecastWindows]:
    """Training, validation and test windows. The first target of the later two is at the border, so their context reaches back
    over it, as in the reference."""
    starts = (0, borders[0] - context_length, borders[1] - context_length)
    return tuple(
        ForecastWindows(
            values[start:end],
            context_length,
            prediction_length,
            None if time_features is None else time_features[start:end],
        )
        for start, end in zip(starts, borders)
    )


def climate() -> pd.DataFrame:
    """Two monthly series that statsmodels ships, March 1958 to December 2001 (526 rows, five CO2 values missing).

    `sst` is the sea surface temperature off Peru and Ecuador (0-10 S, 90-80 W) in degrees Celsius, where El Nino shows; `co2` is
    the carbon dioxide at Mauna Loa in ppm, the mean of each month's weekly values. Both have seasons, one has a trend.
    """
    import pandas as pd
    from statsmodels.datasets import co2, elnino

    years = elnino.load_pandas().data.set_index("YEAR")
    months = pd.date_range(f"{int(years.index[0])}-01-01", periods=years.size, freq="MS", name="date")
    sst = pd.Series(years.to_numpy().ravel(), index=months)
    weekly = co2.load_pandas().data["co2"]
    frame = pd.DataFrame({"sst": sst, "co2": weekly.resample("MS").mean()})
    return frame.loc["1958-03":"2001-12"].asfreq("MS").rename_axis("date")


def seasonal_naive(history: np.ndarray, horizon: int, season: int, seasons: int = 1) -> np.ndarray:
    """(time, columns) -> (horizon, columns): the last season again.

    With `seasons` above 1 its shape is the mean over so many seasons, at the level of the last one: less noise, a stronger forecast
    where years differ. NaN in the history is left out of the means.

    Raises:
        ValueError: a history shorter than the seasons asked for.
    """
    needed = season * seasons
    if not needed or len(history) < needed:
        raise ValueError(
            f"{seasons} seasons of {season} steps need {needed} steps of history (1 or more), got {len(history)}"
        )
    years = history[-needed:].reshape(seasons, season, *history.shape[1:])
    levels = np.nanmean(years, axis=1, keepdims=True)
    shape = np.nanmean(years - levels, axis=0) + levels[-1]
    return np.concatenate([shape] * -(-horizon // season))[:horizon]
