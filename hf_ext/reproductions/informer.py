"""Informer on ETTh1 with ProbSparse and with full attention, at a width that trains on a CPU in minutes.

The protocol is that of zhouhaoyi/Informer2020's main_informer.py: `forecasting.py`, with six epochs at most and a test that drops the
last incomplete batch of 32.
"""

from __future__ import annotations

from transformers import set_seed

from hf_ext.data import time_series as ts
from hf_ext.models.informer import InformerGenerativeConfig, InformerGenerativeForPrediction
from hf_ext.reproductions import Experiment, Row, Run, forecasting

SEED = 2021
# README of the reference, multivariate: horizon -> (MSE, MAE)
PAPER = {
    "prob": {
        24: ("0.577", "0.549"),
        48: ("0.685", "0.625"),
        168: ("0.931", "0.752"),
        336: ("1.128", "0.873"),
        720: ("1.215", "0.896"),
    },
    "full": {24: ("0.620", "0.577"), 48: ("0.692", "0.671")},
}
SHIPPED = {"horizon": 24, "width": 128}  # what the card's weights are


def etth1(run: Run) -> list[Row]:
    horizon, width = run.options["horizon"], run.options["width"]
    if horizon not in PAPER["prob"]:
        raise ValueError(f"`horizon` must be one of {', '.join(map(str, PAPER['prob']))}, got {horizon}")
    frame = forecasting.etth1(run.options["data"])
    rows = []
    for attention in PAPER:
        set_seed(SEED)
        config = InformerGenerativeConfig.from_preset(
            f"etth1-{horizon}", attention_type=attention, hidden_size=width, intermediate_size=SIZES[width]
        )
        training, validation, test = forecasting.windows(config, frame, ts.ETT_HOURLY_BORDERS)
        model = forecasting.train(
            InformerGenerativeForPrediction(config),
            training,
            validation,
            run.folder / attention,
            seed=SEED,
            num_train_epochs=run.options["epochs"],
        )
        shipped = attention == "prob" and {"horizon": horizon, "width": width} == SHIPPED
        if shipped:
            forecasting.ship(model, run.card)
        dataset = f"ETTh1, {config.context_length} -> {horizon} steps" if shipped else ""
        papers = PAPER[attention].get(horizon, ("", ""))
        rows += [
            Row(f"{metric}, {horizon} steps, {attention} attention", ours, paper, dataset, metric.lower())
            for metric, ours, paper in zip(
                ("MSE", "MAE"), forecasting.errors(model, test, batch_size=32, drop_last=True), papers
            )
        ]
    return rows


SIZES = {128: 256, 512: 2048}  # width -> that of the feed-forward network; the paper's is 512

EXPERIMENTS = {
    "etth1": Experiment(
        "ETTh1, all variates, ProbSparse and full attention (README of the reference), at a quarter of the paper's width",
        etth1,
        minutes=8,
        options={
            **forecasting.DATA_OPTION,
            "horizon": (24, "steps to forecast: 24, 48, 168, 336 or 720"),
            "width": (128, "hidden size: 128, or the paper's 512"),
            "epochs": (6, "at most"),
        },
    ),
}
