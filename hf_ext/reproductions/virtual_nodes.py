"""Virtual nodes on a synthetic road network whose far ends depend on each other, and on the 25-sensor subset of PeMSD7(M).

Every way to make the adjacency trains the same STGCN from the same seeds on the same windows; what is reported is the error at the paper's
far horizon, steps 15 to 20, averaged over the seeds. STGCN's LayerNorm spans all sensors, so a model without virtual nodes does see one
number of the whole network; `synthetic_roads` asks for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from transformers import set_seed

from hf_ext.data.time_series import share_borders
from hf_ext.data.traffic import PEMSD7M_DAYS, STEPS_PER_DAY, Traffic, persistence, split_days, synthetic_roads
from hf_ext.models.virtual_nodes import VirtualNodesConfig, VirtualNodeSTGCNForPrediction
from hf_ext.reproductions import Experiment, Row, Run

from .forecasting import ship, train
from .traffic import PEMSD7M_OPTION, forecasts, horizon_errors, read_pemsd7m

MODES = ("distance", "ones", "semi")
FAR = slice(14, 20)  # 75 to 100 minutes, the paper's last column
SMALL = {
    "num_input_channels": 1,
    "num_virtual_nodes": 8,
    "prediction_length": 20,
    "blocks": [[32, 8, 32], [32, 8, 32], [64, 64]],
    "dropout": 0.1,
}


def roads(run: Run) -> list[Row]:
    traffic = synthetic_roads()
    borders = share_borders(len(traffic.speeds), train=0.7, test=0.2)
    return compare(run, traffic, tuple(np.diff((0, *borders)).tolist()), "synthetic roads, 40 sensors")


def pemsd7m(run: Run) -> list[Row]:
    days = tuple(STEPS_PER_DAY * number for number in PEMSD7M_DAYS)
    traffic = read_pemsd7m(run.options["data"])
    return compare(run, traffic, days, "PeMSD7(M), 25 sensors", steps_per_day=STEPS_PER_DAY, stride=4)


def compare(run: Run, traffic: Traffic, rows: tuple[int, int, int], dataset: str, **windows: Any) -> list[Row]:
    """Root mean squared error in mph at the far horizon for each mode; the last semi-adaptive model of `roads` goes to the card."""
    values, mean, std = traffic.standardized(rows[0])
    parts = split_days(values, 12, SMALL["prediction_length"], rows, **windows)
    test = parts[-1]
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for seed in range(run.options["seeds"]):
        for mode in MODES:
            config = VirtualNodesConfig(
                num_nodes=values.shape[1], adjacency_mode=mode, channel_means=[mean], channel_stds=[std], **SMALL
            )
            model = fit(config, traffic, parts[:2], run.folder / f"{mode}-{seed}", seed, run.options["epochs"])
            found[mode].append(horizon_errors(forecasts(model, test), test, FAR, std)[1])
            if mode == "semi" and seed == 0 and run.options.get("ship"):
                ship(model, run.card)
    last = horizon_errors(persistence(test), test, FAR, std)[1]
    return [
        Row(f"RMSE, {mode}, 75-100 minutes (mph)", fmean(found[mode]), "", dataset, "rmse", note(found, mode, last))
        for mode in MODES
    ]


def note(found: dict[str, list[float]], mode: str, last: float) -> str:
    spread = f"± {stdev(found[mode]):.3f} over {len(found[mode])} seeds" if len(found[mode]) > 1 else "one seed"
    if mode == "distance":
        return f"{spread}; last value again {last:.3f}"
    return f"{spread}; {100 * (fmean(found[mode]) / fmean(found['distance']) - 1):+.1f}% against distance"


def fit(
    config: VirtualNodesConfig, traffic: Traffic, parts: Sequence[Any], folder: Path, seed: int, epochs: int
) -> VirtualNodeSTGCNForPrediction:
    set_seed(seed)
    model = VirtualNodeSTGCNForPrediction.from_graph(config, traffic.adjacency)
    return train(
        model,
        *parts,
        folder,
        rate=lambda epoch: 0.5 ** (epoch // 8),
        patience=epochs,
        num_train_epochs=epochs,
        learning_rate=5e-3,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        seed=seed,
    )


EXPERIMENTS = {
    "roads": Experiment(
        "Synthetic ring road, 20 steps ahead: distance, ones, semi-adaptive; trains the weights that the card ships",
        roads,
        minutes=6,
        options={
            "epochs": (10, "at most"),
            "seeds": (1, "models of each kind"),
            "ship": (True, "put one into the card"),
        },
    ),
    "pemsd7m": Experiment(
        "PeMSD7(M), 25 sensors, 20 steps ahead: distance, ones, semi-adaptive",
        pemsd7m,
        minutes=6,
        options={**PEMSD7M_OPTION, "epochs": (10, "at most"), "seeds": (1, "models of each kind")},
    ),
}
