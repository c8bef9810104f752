"""iTransformer: the paper's ETTh1 forecasts, and the small climate model that the card ships.

The protocol is that of thuml/iTransformer's run.py: the training part standardises, Adam with batches of 32 that drop the last
incomplete one, the learning rate of two epochs and then halved after each, no weight decay or clipping, and the weights of the
epoch with the lowest validation error, after three epochs without a lower one or ten in all. The test error is the mean over
every window and variate, on standardised values.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import tqdm

import hf_ext
from hf_ext.data import time_series as ts
from hf_ext.files import atomic_folder
from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction
from hf_ext.reproductions import Experiment, MissingData, Row, Run

if TYPE_CHECKING:
    import pandas as pd

SEED = 2023  # the reference's
PAPER = {96: ("0.386", "0.405"), 192: ("0.441", "0.436"), 336: ("0.487", "0.458"), 720: ("0.503", "0.491")}
ETTH1 = "../shared/data/ett/ETTh1.csv"


def etth1(run: Run) -> list[Row]:
    horizon = run.options["horizon"]
    if horizon not in PAPER:
        raise ValueError(f"`horizon` must be one of {', '.join(map(str, PAPER))}, got {horizon}")
    frame = ts.read_ett(_find(run.options["data"]))
    set_seed(SEED)
    config = ITransformerConfig.from_preset(f"etth1-{horizon}")
    model, test = train(config, frame, ts.ETT_HOURLY_BORDERS, run.folder, num_train_epochs=run.options["epochs"])
    mse, mae = errors(model, test)
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
        halve=False,
        num_train_epochs=run.options["epochs"],
        learning_rate=1e-3,
        dataloader_drop_last=False,
    )
    dataset = "climate (SST and CO2, statsmodels), 48 -> 12 months"
    rows = [
        Row(metric, ours, "", dataset, metric.lower(), f"seasonal naive {naive:.3f}, mean of four seasons {mean:.3f}")
        for metric, ours, naive, mean in zip(
            ("MSE", "MAE"), errors(model, test), naive_errors(test, seasons=1), naive_errors(test, seasons=4)
        )
    ]
    _ship(model, run.card)
    return rows


def train(
    config: ITransformerConfig,
    frame: pd.DataFrame,
    borders: tuple[int, int, int],
    folder: Path,
    patience: int = 3,
    halve: bool = True,
    **arguments: Any,
) -> tuple[ITransformerForPrediction, ts.ForecastWindows]:
    """The model with its best epoch's weights, and the test windows. Continues from `folder` if it was interrupted.

    `arguments` are `TrainingArguments`; the paper's are the defaults.
    """
    values = frame.to_numpy()
    standardization = ts.Standardization.fit(values[: borders[0]])
    config.channel_means, config.channel_stds = standardization.mean.tolist(), standardization.std.tolist()
    features = ts.calendar_features(frame.index, config.num_time_features) if config.num_time_features else None
    training, validation, test = ts.split_windows(
        standardization.apply(values), borders, config.context_length, config.prediction_length, features
    )
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 10,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "dataloader_drop_last": True,
        "max_grad_norm": 0,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,
        "label_names": ["future_values"],
        "prediction_loss_only": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "seed": SEED,
    }
    settings = TrainingArguments(**(defaults | arguments))
    model = ITransformerForPrediction(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    steps = len(training) // settings.per_device_train_batch_size
    factor = (lambda step: 0.5 ** max(step // steps - 1, 0)) if halve else (lambda step: 1.0)
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=training,
        eval_dataset=validation,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience)],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    return model.eval(), test


@torch.no_grad()
def errors(model: ITransformerForPrediction, windows: ts.ForecastWindows) -> tuple[float, float]:
    """Mean squared and mean absolute error over every window, step and variate."""
    squared, absolute, count = 0.0, 0.0, 0
    for batch in tqdm(DataLoader(windows, batch_size=64), desc="test"):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        error = model(**batch).prediction_outputs - batch["future_values"]
        squared, absolute, count = (
            squared + error.square().sum().item(),
            absolute + error.abs().sum().item(),
            count + error.numel(),
        )
    return squared / count, absolute / count


def naive_errors(windows: ts.ForecastWindows, seasons: int) -> tuple[float, float]:
    """The same of the seasonal-naive forecast, which sees the same context."""
    pairs = ((window["past_values"].numpy(), window["future_values"].numpy()) for window in windows)
    error = np.stack(
        [ts.seasonal_naive(past, len(future), ts.CLIMATE_SEASON, seasons) - future for past, future in pairs]
    )
    return float(np.square(error).mean()), float(np.abs(error).mean())


def _find(path: str) -> Path:
    """`path` as given, or below the repository."""
    repository = Path(hf_ext.__file__).parent.parent
    for candidate in (Path(path), repository / path):
        if candidate.is_file():
            return candidate
    raise MissingData(
        f"There is no file '{path}'. Download ETTh1.csv from github.com/zhouhaoyi/ETDataset (folder ETT-small) and say where "
        "it is: hf-ext reproduce itransformer --option data=ETTh1.csv"
    )


def _ship(model: ITransformerForPrediction, card: Path) -> None:
    """Puts configuration and weights into the card's folder, beside what is there."""
    with atomic_folder(card) as folder:
        if card.is_dir():
            shutil.copytree(card, folder, dirs_exist_ok=True)
        model.save_pretrained(folder)


EXPERIMENTS = {
    "etth1": Experiment(
        "ETTh1, lookback 96 (Table 10 of the paper)",
        etth1,
        minutes=5,
        options={
            "data": (ETTH1, "where ETTh1.csv is"),
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
