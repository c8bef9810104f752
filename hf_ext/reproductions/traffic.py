"""What the traffic experiments share: the data's place, and errors by horizon in the units of the road."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hf_ext.data.traffic import Traffic, TrafficWindows, pemsd7m

from .forecasting import find

PEMSD7M = "../shared/data/pemsd7m"
PEMSD7M_OPTION = {"data": (PEMSD7M, "folder with V_25.csv and W_25.csv")}


def read_pemsd7m(path: str) -> Traffic:
    """The 25-sensor subset of PeMSD7(M) from `path` as given, or below the repository; `MissingData` otherwise."""
    advice = "Download V_25.csv and W_25.csv from github.com/wubin5/STTN (folder PEMSD7)"
    return pemsd7m(find(f"{path}/V_25.csv", advice).parent)


@torch.no_grad()
def forecasts(model: PreTrainedModel, windows: TrafficWindows, batch_size: int = 64) -> torch.Tensor:
    """(windows, prediction_length, sensors), standardised as `windows` are."""
    loader = DataLoader(windows, batch_size=batch_size)
    outputs = [model(**batch).prediction_outputs for batch in tqdm(loader, desc="test")]
    return torch.cat(outputs)


def truth(windows: TrafficWindows) -> torch.Tensor:
    return torch.stack([window["future_values"] for window in windows])


def horizon_errors(
    predicted: torch.Tensor, windows: TrafficWindows, steps: slice | int, std: float
) -> tuple[float, float]:
    """Mean absolute and root mean squared error at these steps (from 0), times `std`."""
    error = (predicted - truth(windows))[:, steps].double() * std
    return error.abs().mean().item(), error.square().mean().sqrt().item()
