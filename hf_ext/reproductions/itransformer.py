"""iTransformer: the paper's ETTh1 forecasts, and the small climate model that the card ships.

The protocol is that of thuml/iTransformer's run.py, which `forecasting.py` has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import set_seed

from hf_ext.data import time_series as ts
from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction
from hf_ext.reproductions import Experiment, Row, Run, forecasting

if TYPE_CHECKING:
    import pandas as pd

SEED = 2023  # the reference's
PAPER = {96: ("0.386", "0.405"), 192: ("0.441", "0.436"), 336: ("0.487", "0.458"), 720: ("0.503", "0.491")}


def etth1(run: Run) -> list[Row]:
    horizon = run.options["horizon"]
    if horizon not in PAPER:
        raise ValueError(f"`horizon` must be one of {', '.join(map(str, PAPER))}, got {horizon}")
    frame = forecasting.etth1(run.options["data"])
    set_seed(SEED)
    config = ITransformerConfig.from_preset(f"etth1-{horizon}")
    model, test = train(config, frame, ts.ETT_HOURLY_BORDERS, run.folder, num_train_epochs=run.options["epochs"])
    mse, mae = forecasting.errors(model, test)
    # Without a data set these stay out of the card's model-index, which is about the weights that the card ships.
    return [
        Row(f"MSE, ETTh1 96 -> {horizon}", mse, PAPER[horizon][0], note=f"{len(test)} test windows"),
        Row(f"MAE, ETTh1 96 -> {horizon}", mae, PAPER[horizon][1]),
    ]


def demo(run: Run) -> list[Row]:
    """Trains on 1958-1988, chooses the epoch on 1988-1993, is held to seasonal-naive forecasts on 1993-2001."""
    frame = ts.climate()
    set_seed(SEED)
    config = ITransformerConfig(
        context_length=48,
        prediction_length=ts.CLIMATE_SEASON,
        num_input_channels=frame.shape[1],
        num_time_features=1,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
    )
    model, test = train(
        config,
        frame,
        ts.CLIMATE_BORDERS,
        run.folder,
        patience=30,
        rate=lambda epoch: 1.0,
        num_train_epochs=run.options["epochs"],
        learning_rate=1e-3,
        dataloader_drop_last=False,
    )
    dataset = "climate (SST and CO2, statsmodels), 48 -> 12 months"
    rows = [
        Row(metric, ours, "", dataset, metric.lower(), f"seasonal naive {naive:.3f}, mean of four seasons {mean:.3f}")
        for metric, ours, naive, mean in zip(
            ("MSE", "MAE"),
            forecasting.errors(model, test),
            naive_errors(test, seasons=1),
            naive_errors(test, seasons=4),
        )
    ]
    forecasting.ship(model, run.card)
    return rows


def train(
    config: ITransformerConfig, frame: pd.DataFrame, borders: tuple[int, int, int], folder: Path, **arguments: Any
) -> tuple[ITransformerForPrediction, ts.ForecastWindows]:
    """The model with its best epoch's weights, and the test windows. `arguments` are those of `forecasting.train`."""
    training, validation, test = forecasting.windows(config, frame, borders)
    model = ITransformerForPrediction(config)
    return forecasting.train(model, training, validation, folder, seed=SEED, **arguments), test


def naive_errors(windows: ts.ForecastWindows, seasons: int) -> tuple[float, float]:
    """The same of the seasonal-naive forecast, which sees the same context."""
    pairs = ((window["past_values"].numpy(), window["future_values"].numpy()) for window in windows)
    error = np.stack(
        [ts.seasonal_naive(past, len(future), ts.CLIMATE_SEASON, seasons) - future for past, future in pairs]
    )
    return float(np.square(error).mean()), float(np.abs(error).mean())


EXPERIMENTS = {
    "etth1": Experiment(
        "ETTh1, lookback 96 (Table 10 of the paper)",
        etth1,
        minutes=5,
        options={
            **forecasting.DATA_OPTION,
            "horizon": (96, "steps to forecast: 96, 192, 336 or 720"),
            "epochs": (10, "at most"),
        },
    ),
    "demo": Experiment(
        "Monthly sea temperature and CO2: the checkpoint that the card ships",
        demo,
        minutes=2,
        options={"epochs": (60, "at most")},
    ),
}
