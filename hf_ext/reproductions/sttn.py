"""STTN on the 25-sensor subset of PeMSD7(M), against the last value again.

The protocol is the authors': one mean and deviation of the training days, windows inside a day, training on the next step alone, RMSProp
with a rate of 1e-3 that falls by 0.7 every five epochs, batches of 50, an L2 term on all weights but those of attention and feed-forward
networks, the epoch with the lowest validation error. They train 50 epochs on every window; ten on every second one take minutes.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import set_seed

from hf_ext.data.traffic import PEMSD7M_DAYS, STEPS_PER_DAY, TrafficWindows, persistence
from hf_ext.models.sttn import STTNConfig, STTNForPrediction
from hf_ext.reproductions import Experiment, Row, Run

from .forecasting import ship, train
from .traffic import PEMSD7M_OPTION, forecasts, horizon_errors, read_pemsd7m

HORIZONS = (3, 6, 9)
L2_WEIGHT = 1e-3  # of half the squared norm, beside an error in mph
DATASET = "PeMSD7(M), 25 sensors"


def pemsd7m(run: Run) -> list[Row]:
    traffic = read_pemsd7m(run.options["data"])
    train_end, validation_end, _ = (STEPS_PER_DAY * int(day) for day in np.cumsum(PEMSD7M_DAYS))
    values, mean, std = traffic.standardized(train_end)
    set_seed(0)
    config = STTNConfig.from_preset("pemsd7m-25", channel_means=[mean], channel_stds=[std])
    model = STTNForPrediction.from_graph(config, traffic.adjacency)
    context, horizon = config.context_length, config.prediction_length
    train(
        model,
        TrafficWindows(values[:train_end], context, 1, STEPS_PER_DAY, stride=run.options["stride"]),
        TrafficWindows(values[train_end:validation_end], context, horizon, STEPS_PER_DAY, stride=3),
        run.folder,
        rate=lambda epoch: 0.7 ** (epoch // 5),
        patience=run.options["epochs"],
        optimizer=rmsprop(model, std),
        num_train_epochs=run.options["epochs"],
        per_device_train_batch_size=50,
        seed=0,
    )
    test = TrafficWindows(values[validation_end:], context, horizon, STEPS_PER_DAY)
    rows = rows_of(forecasts(model, test), persistence(test), test, std)
    ship(model, run.card)
    return rows


def rmsprop(model: STTNForPrediction, std: float) -> torch.optim.Optimizer:
    """The authors' RMSProp, its L2 term as a decay; it works on standardised errors, hence the division."""
    dense = {id(p) for name, p in model.named_parameters() if ".layer." in name or name.rpartition(".")[2] != "weight"}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in dense], "weight_decay": L2_WEIGHT / std},
        {"params": [p for p in model.parameters() if id(p) in dense]},
    ]
    return torch.optim.RMSprop(groups, lr=1e-3, alpha=0.9)


def rows_of(predicted: torch.Tensor, naive: torch.Tensor, test: TrafficWindows, std: float) -> list[Row]:
    rows = []
    for steps in HORIZONS:
        ours, last = (horizon_errors(forecast, test, steps - 1, std) for forecast in (predicted, naive))
        for metric, value, baseline in zip(("MAE", "RMSE"), ours, last):
            name = f"{metric}, {5 * steps} minutes (mph)"
            rows.append(Row(name, value, "", DATASET, metric.lower(), f"last value again {baseline:.2f}"))
    return rows


EXPERIMENTS = {
    "pemsd7m": Experiment(
        "PeMSD7(M), 25 sensors: 15, 30 and 45 minutes ahead; trains the weights that the card ships",
        pemsd7m,
        minutes=6,
        options={
            **PEMSD7M_OPTION,
            "epochs": (10, "at most"),
            "stride": (2, "train on each so-manieth window; the authors take every one"),
        },
    ),
}
