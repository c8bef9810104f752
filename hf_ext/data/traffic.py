"""Road traffic: sensors by time, and how far it is from each to each along the road.

Readers for the field's plain files, windows that stay inside a day, and a synthetic road network whose far ends depend on each other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_ext.layers.graph import adjacency_from_distances, check_graph

if TYPE_CHECKING:
    import pandas as pd

STEPS_PER_DAY = 288  # of five minutes
PEMSD7M_DAYS = (34, 5, 5)  # training, validation and test: the weekdays of May and June 2012
ROAD_SPACING = (
    1500.0,
    2400.0,
)  # metres between neighbouring sensors of `synthetic_roads`: only neighbours become linked
FREE_SPEED, SLOWDOWN = 60.0, 8.0  # mph without congestion, and less for each unit of it


@dataclass
class Traffic:
    """Speeds (time, sensors) in mph, every five minutes, and distances (sensors, sensors) in metres."""

    speeds: pd.DataFrame
    distances: np.ndarray

    @property
    def adjacency(self) -> torch.Tensor:
        """(sensors, sensors) float32 weights by distance, as STGCN and STTN make them."""
        return adjacency_from_distances(torch.as_tensor(self.distances, dtype=torch.float64)).float()

    def standardized(self, rows: int) -> tuple[np.ndarray, float, float]:
        """All speeds with the mean and deviation of the first `rows` rows, one for all sensors; then these two."""
        values = self.speeds.to_numpy()
        mean, std = float(values[:rows].mean()), float(values[:rows].std())
        return (values - mean) / std, mean, std


def read_matrix(path: str | Path) -> np.ndarray:
    """A CSV file of numbers without a header, as float64 (rows, columns).

    Raises:
        ValueError: a missing file, text or gaps in it, or values that are not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an empty file, which is refused below
            matrix = np.loadtxt(path, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise ValueError(f"There is no file '{path}'") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"'{path}' is no CSV of numbers: {str(error).splitlines()[0]}") from None
    if not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(f"'{path}' must hold finite numbers, and at least one")
    return matrix


def read_traffic(speeds: str | Path, distances: str | Path, index: pd.DatetimeIndex | None = None) -> Traffic:
    """Both files of a data set: speeds (time x sensors) and distances (sensors x sensors), without headers.

    Raises:
        ValueError: a file that is no matrix, or two that do not have the same sensors.
    """
    import pandas as pd

    values, lengths = read_matrix(speeds), read_matrix(distances)
    check_graph(torch.as_tensor(lengths), f"distances in '{distances}'", num_nodes=values.shape[1])
    names = [f"sensor {number}" for number in range(values.shape[1])]
    return Traffic(pd.DataFrame(values, index=index, columns=names), lengths)


def pemsd7m(folder: str | Path) -> Traffic:
    """The subset of PeMSD7(M) with 25 sensors (V_25.csv, W_25.csv of wubin5/STTN): 44 weekdays of May and June 2012.

    Raises:
        ValueError: files that are missing, or are not these.
    """
    import pandas as pd

    days = pd.bdate_range("2012-05-01", periods=sum(PEMSD7M_DAYS))
    minutes = pd.timedelta_range(0, periods=STEPS_PER_DAY, freq="5min")
    index = pd.DatetimeIndex([day + minute for day in days for minute in minutes], name="time")
    traffic = read_traffic(Path(folder) / "V_25.csv", Path(folder) / "W_25.csv")
    if len(traffic.speeds) != len(index):
        raise ValueError(f"V_25.csv must have {len(index)} rows, has {len(traffic.speeds)}: is it another file?")
    traffic.speeds.index = index
    return traffic


def synthetic_roads(
    num_sensors: int = 40,
    steps: int = 4000,
    num_gateways: int = 8,
    delay: int = 16,
    noise: float = 0.3,
    seed: int = 0,
) -> Traffic:
    """A ring road where congestion spreads from sensor to sensor, and what enters on one side is on the other `delay` steps later.

    Cars enter at gateways, in independent slow waves. Congestion diffuses along the road and dissolves; and the cars of a gateway reach
    the district opposite to it `delay` steps after they entered, by streets without sensors. So what a sensor shows at a horizon near
    `delay` is to be seen now, but far away: nothing near the sensor tells of it, and nothing in the distances.

    Args:
        num_sensors: around the ring, 1.5 to 2.4 km apart.
        steps: of five minutes.
        num_gateways: spread evenly; at least one, at most `num_sensors`.
        delay: steps from a gateway to everywhere.
        noise: deviation of the sensors' own error, over that of the congestion.
        seed: same seed, same roads and traffic.

    Raises:
        ValueError: fewer than three sensors, a number of gateways out of range, or `steps` not above `delay`.
    """
    import pandas as pd

    if num_sensors < 3 or not 1 <= num_gateways <= num_sensors or not 1 <= delay < steps:
        raise ValueError(
            "`synthetic_roads` needs 3 sensors or more, 1 to `num_sensors` gateways and a `delay` of at least 1 and below `steps`, "
            f"got {num_sensors}, {num_gateways} and {delay} of {steps}"
        )
    generator = np.random.default_rng(seed)
    distances = _ring(generator.uniform(*ROAD_SPACING, num_sensors))
    congestion = _diffuse(distances, steps, num_gateways, delay, generator)
    measured = congestion + noise * congestion.std() * generator.standard_normal(congestion.shape)
    index = pd.date_range("2024-01-01", periods=steps, freq="5min", name="time")
    names = [f"sensor {number}" for number in range(num_sensors)]
    return Traffic(pd.DataFrame(FREE_SPEED - SLOWDOWN * measured, index=index, columns=names), distances)


def _ring(gaps: np.ndarray) -> np.ndarray:
    """(sensors,) metres to the next sensor -> the shorter way round from each to each."""
    position = np.cumsum(gaps) - gaps
    ahead = np.abs(position[:, None] - position[None])
    return np.minimum(ahead, gaps.sum() - ahead)


def _diffuse(
    distances: np.ndarray, steps: int, num_gateways: int, delay: int, generator: np.random.Generator
) -> np.ndarray:
    """(steps, sensors) of congestion, its mean near 0."""
    persistence, keep, spread, warm_up = 0.9, 0.7, 0.3, 200
    sensors, total = len(distances), steps + warm_up
    weights = adjacency_from_distances(torch.as_tensor(distances)).numpy()
    neighbours = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
    gateways = np.arange(num_gateways) * sensors // num_gateways
    nearest = np.arange(sensors) * num_gateways // sensors
    opposite = (nearest + num_gateways // 2) % num_gateways
    inflow = np.zeros((total, num_gateways))
    congestion = np.zeros((total, sensors))
    for step in range(1, total):
        shock = generator.standard_normal(num_gateways)
        inflow[step] = persistence * inflow[step - 1] + (1 - persistence**2) ** 0.5 * shock
        before = congestion[step - 1]
        diffused = (1 - spread) * before + spread * neighbours @ before
        arriving = inflow[step - delay, opposite] if step >= delay else 0.0
        congestion[step] = keep * diffused + (1 - keep) * arriving
        congestion[step, gateways] = inflow[step]
    return congestion[warm_up:]


class TrafficWindows(Dataset):
    """Every window of the series that does not cross midnight, as the forward arguments of a traffic model.

    Args:
        values: (time, sensors) or (time, sensors, channels), standardised.
        context_length, prediction_length: steps before and after the moment of the forecast.
        steps_per_day: windows stay inside a day of so many rows; None where the series is one piece.
        stride: rows from a window to the next one of the same day.

    Raises:
        ValueError: rows that are no whole days, or too few for one window.
    """

    def __init__(
        self,
        values: np.ndarray,
        context_length: int,
        prediction_length: int,
        steps_per_day: int | None = None,
        stride: int = 1,
    ):
        day = steps_per_day or len(values)
        if not len(values) or len(values) % day:
            raise ValueError(f"{len(values)} rows are no whole days of {day} steps")
        if day < context_length + prediction_length:
            raise ValueError(f"{day} rows are too few for one window of {context_length} + {prediction_length} steps")
        self.values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.context_length, self.prediction_length = context_length, prediction_length
        first = range(0, day - context_length - prediction_length + 1, stride)
        self.starts = [start + offset for start in range(0, len(values), day) for offset in first]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index]
        now = start + self.context_length
        return {
            "past_values": self.values[start:now],
            "future_values": self.values[now : now + self.prediction_length],
        }


def split_days(
    values: np.ndarray, context_length: int, prediction_length: int, rows: tuple[int, int, int], **windows
) -> tuple[TrafficWindows, TrafficWindows, TrafficWindows]:
    """Training, validation and test windows over so many rows each; `windows` are further arguments of `TrafficWindows`."""
    ends = np.cumsum(rows)
    return tuple(
        TrafficWindows(values[end - size : end], context_length, prediction_length, **windows)
        for end, size in zip(ends, rows)
    )


def persistence(windows: TrafficWindows) -> torch.Tensor:
    """(windows, prediction_length, sensors): the last value again, the forecast that every other one must beat."""
    last = torch.stack([window["past_values"][-1] for window in windows])
    return last[:, None].expand(-1, windows.prediction_length, *last.shape[1:])
