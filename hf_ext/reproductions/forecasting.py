"""The forecasting papers' protocol: one way to split, train, choose an epoch and score.

The training part standardises; Adam, batches of 32 that drop the last incomplete one, no weight decay or clipping; the rate of
two epochs, then halved after each (`lradj type1` of the Informer family); the weights of the epoch with the lowest validation
error, after three epochs without a lower one or ten in all. Errors are means over every window, step and variate, on
standardised values. What a paper does otherwise is an argument.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import tqdm

import hf_ext
from hf_ext.data import time_series as ts
from hf_ext.files import atomic_folder
from hf_ext.reproductions import MissingData

if TYPE_CHECKING:
    import pandas as pd

ETTH1 = "../shared/data/ett/ETTh1.csv"
DATA_OPTION = {"data": (ETTH1, "where ETTh1.csv is")}


def etth1(path: str) -> pd.DataFrame:
    """ETTh1 from `path` as given, or below the repository.

    Raises:
        MissingData: there is no such file.
    """
    return ts.read_ett(find(path, "Download ETTh1.csv from github.com/zhouhaoyi/ETDataset (folder ETT-small)"))


def find(path: str, advice: str) -> Path:
    """`path` as given, or below the repository; `MissingData` with advice otherwise."""
    for candidate in (Path(path), Path(hf_ext.__file__).parent.parent / path):
        if candidate.exists():
            return candidate
    raise MissingData(f"There is no '{path}'. {advice} and say where it is with --data PATH")


def windows(
    config: Any, frame: pd.DataFrame, borders: tuple[int, int, int]
) -> tuple[ts.ForecastWindows, ts.ForecastWindows, ts.ForecastWindows]:
    """Training, validation and test windows of `config`'s lengths, standardised with what `config` then keeps, with its calendar."""
    values = frame.to_numpy()
    standardization = ts.Standardization.fit(values[: borders[0]])
    config.channel_means, config.channel_stds = standardization.mean.tolist(), standardization.std.tolist()
    features = ts.calendar_features(frame.index, config.num_time_features) if config.num_time_features else None
    return ts.split_windows(
        standardization.apply(values), borders, config.context_length, config.prediction_length, features
    )


def halving(epoch: int) -> float:
    """`lradj type1`: 1, 1, 1/2, 1/4 ..."""
    return 0.5 ** max(epoch - 1, 0)


def train(
    model: PreTrainedModel,
    training: Dataset,
    validation: Dataset,
    folder: Path,
    rate: Callable[[int], float] = halving,
    patience: int = 3,
    callbacks: tuple[TrainerCallback, ...] = (),
    optimizer: torch.optim.Optimizer | None = None,
    **arguments: Any,
) -> PreTrainedModel:
    """Trains in place, to the weights of the best epoch. Continues from `folder` if it was interrupted.

    `rate` maps the epoch (from 0) to a factor on the learning rate; `optimizer` takes Adam's place; `arguments` are
    `TrainingArguments`, the protocol's are the defaults. Items of the data sets are forward arguments, `future_values` among them.
    """
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
    }
    settings = TrainingArguments(**(defaults | arguments))
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    steps = max(len(training) // settings.per_device_train_batch_size, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step // steps))
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=training,
        eval_dataset=validation,
        optimizers=(optimizer, schedule),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience), *callbacks],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    return model.eval()


@torch.no_grad()
def errors(
    model: PreTrainedModel, windows: Dataset, batch_size: int = 64, drop_last: bool = False, **forward: Any
) -> tuple[float, float]:
    """Mean squared and mean absolute error over every window, step and variate.

    `drop_last` leaves out the windows of the last incomplete batch, as references do whose test loader does; `forward` are further
    arguments of the model.
    """
    squared, absolute, count = 0.0, 0.0, 0
    for batch in tqdm(DataLoader(windows, batch_size=batch_size, drop_last=drop_last), desc="test"):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        truth = batch.pop("future_values")
        error = model(**batch, **forward).prediction_outputs - truth
        squared += error.square().sum().item()
        absolute += error.abs().sum().item()
        count += error.numel()
    return squared / count, absolute / count


def ship(model: PreTrainedModel, card: Path) -> None:
    """Puts configuration and weights into the card's folder, beside what is there."""
    with atomic_folder(card) as folder:
        if card.is_dir():
            shutil.copytree(card, folder, dirs_exist_ok=True)
        model.save_pretrained(folder)
