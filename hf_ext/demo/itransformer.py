"""iTransformer forecasts two real series, beside the seasonal forecast that anybody would try first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import pipeline

from hf_ext.data.time_series import CLIMATE_BORDERS, CLIMATE_SEASON, Standardization, climate, seasonal_naive

from . import Picture, Shown, Track

SEASONS = 4  # that the baseline averages over: as many as the model sees


def show(card: Path, track: Track) -> Shown:
    frame = climate()
    forecaster = pipeline("time-series-forecasting", model=str(card))
    context, horizon = forecaster.model.config.context_length, forecaster.model.config.prediction_length
    standardize = Standardization.fit(frame.to_numpy()[: CLIMATE_BORDERS[0]]).apply
    starts = range(CLIMATE_BORDERS[1], len(frame) - horizon + 1, 4)
    errors = []
    for start in track(starts, "iTransformer: forecasting the held-out end"):
        past, truth = frame.iloc[start - context : start], frame.iloc[start : start + horizon].to_numpy()
        ours = forecaster(past).to_numpy()
        naive = seasonal_naive(past.to_numpy(), horizon, CLIMATE_SEASON, SEASONS)
        errors.append([np.nanmean((standardize(x) - standardize(truth)) ** 2) for x in (naive, ours)])
    naive_mse, our_mse = np.mean(errors, axis=0)
    return Shown(
        task="time-series-forecasting",
        metric=f"MSE, {horizon} months ahead",
        baseline=f"{naive_mse:.3f} (seasonal naive)",
        ours=f"{our_mse:.3f}",
        pictures=[
            Picture(
                _plot(frame, forecaster, context, horizon),
                f"The last held-out year; the baseline repeats the mean of {SEASONS} seasons. MSE is on standardised data",
                900,
            )
        ],
    )


def _plot(frame, forecaster, context: int, horizon: int):
    from matplotlib.figure import Figure

    past, truth = frame.iloc[-horizon - context : -horizon], frame.iloc[-horizon:]
    ours = forecaster(past)
    naive = seasonal_naive(past.to_numpy(), horizon, CLIMATE_SEASON, SEASONS)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axis, column in zip(figure.subplots(len(frame.columns), 1, sharex=True), frame.columns):
        recent = past[column].iloc[-48:]
        axis.plot(recent.index, recent, color="0.5", label="history")
        axis.plot(truth.index, truth[column], color="black", label="what happened")
        axis.plot(
            truth.index, naive[:, frame.columns.get_loc(column)], color="tab:orange", ls="--", label="seasonal naive"
        )
        axis.plot(ours.index, ours[column], color="tab:blue", label="iTransformer")
        axis.set_ylabel(column)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, ncols=4, fontsize="small")
    return figure
