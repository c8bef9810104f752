"""TPGN on ETTh1: the oil temperature, a week ahead from a week back, with 431 parameters.

The protocol is that of Water2sea/TPGN's run.py as its paper describes it: 60/20/20 per cent of the rows, the target column alone,
Adam at 1e-3 times 0.9 per epoch, batches of 32, up to 25 epochs with a patience of 5, test windows but for those of the last
incomplete batch.
"""

from __future__ import annotations

from transformers import set_seed

from hf_ext.data import time_series as ts
from hf_ext.models.tpgn import TPGNConfig, TPGNForPrediction
from hf_ext.reproductions import Experiment, Row, Run, forecasting

SEED = 2023  # the reference's
BATCH = 32
# Table 1 of the authors' README: (MSE, MAE)
PAPER = {168: ("0.1061", "0.2533"), 336: ("0.1110", "0.2625"), 720: ("0.1346", "0.2908"), 1440: ("0.1343", "0.2941")}


def etth1(run: Run) -> list[Row]:
    horizon = run.options["horizon"]
    if horizon not in PAPER:
        raise ValueError(f"`horizon` must be one of {', '.join(map(str, PAPER))}, got {horizon}")
    frame = forecasting.etth1(run.options["data"])[["OT"]]
    borders = ts.share_borders(len(frame), train=0.6, test=0.2)
    values = frame.to_numpy()
    standardization = ts.Standardization.fit(values[: borders[0]])
    config = TPGNConfig.from_preset(
        f"etth1-{horizon}",
        channel_means=standardization.mean.tolist(),
        channel_stds=standardization.std.tolist(),
    )
    training, validation, test = ts.split_windows(
        standardization.apply(values),
        borders,
        config.context_length,
        horizon,
        ts.calendar_features(frame.index, config.num_time_features),
    )
    set_seed(SEED)
    model = forecasting.train(
        TPGNForPrediction(config),
        training,
        validation,
        run.folder,
        rate=lambda epoch: 0.9**epoch,
        patience=5,
        seed=SEED,
        num_train_epochs=run.options["epochs"],
        learning_rate=1e-3,
        per_device_train_batch_size=BATCH,
    )
    dataset = f"ETTh1 (OT, 60/20/20), 168 -> {horizon} steps"
    rows = [
        Row(f"{metric}, 168 -> {horizon}", ours, paper, dataset, metric.lower())
        for metric, ours, paper in zip(
            ("MSE", "MAE"), forecasting.errors(model, test, batch_size=BATCH, drop_last=True), PAPER[horizon]
        )
    ]
    if horizon == 168:
        forecasting.ship(model, run.card)
    return rows


EXPERIMENTS = {
    "etth1": Experiment(
        "ETTh1, oil temperature, lookback 168 (Table 1 of the authors' README)",
        etth1,
        minutes=5,
        options={
            **forecasting.DATA_OPTION,
            "horizon": (168, "steps to forecast: 168, 336, 720 or 1440; the card ships the first"),
            "epochs": (25, "at most"),
        },
    ),
}
