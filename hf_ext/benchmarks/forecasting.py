"""What the benchmarks of forecasting models share: both measured works, upstream's PatchTST at equal width, the authors' networks."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PatchTSTConfig, PatchTSTForPrediction

from hf_ext.benchmarks import Contest

# What the modules of thuml's family import for other models, and what stands for it where it is not installed
STAND_INS = {"reformer_pytorch": {"LSHSelfAttention": None}, "einops": {"rearrange": None, "repeat": None}}


def pair(
    name: str, peer_name: str, ours: dict[str, Callable], peer: dict[str, Callable], threads: int = 1
) -> Iterator[Contest]:
    for work in ours:
        yield Contest(f"{name}, {work}", ours[work], peer[work], peer_name, threads=threads)


def runs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    """Both measured works: a forward pass in eval mode, and an Adam step in training mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(**inputs)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    return {"inference": infer, "training step": step}


def random_inputs(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class WithLoss(nn.Module):
    """The authors' network with the loss that their training loop takes.

    `call(network, **inputs)` is how that loop calls it; `target(**inputs)` is what it holds the result to.
    """

    def __init__(
        self, network: nn.Module, call: Callable[..., torch.Tensor], target: Callable[..., torch.Tensor] | None = None
    ):
        super().__init__()
        self.network, self.call, self.target = network, call, target

    def forward(self, **inputs: torch.Tensor) -> Namespace:
        target = self.target(**inputs) if self.target else inputs["future_values"]
        return Namespace(loss=nn.functional.mse_loss(self.call(self.network, **inputs), target))


def patchtst(config: Any, channels: int, horizon: int, dropout: float) -> PatchTSTForPrediction:
    """Patches of 16 steps, 8 apart, as in the PatchTST paper; width, depth, heads and lookback of `config`."""
    return PatchTSTForPrediction(
        PatchTSTConfig(
            num_input_channels=channels,
            context_length=config.context_length,
            prediction_length=horizon,
            patch_length=16,
            patch_stride=8,
            d_model=config.hidden_size,
            ffn_dim=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            attention_dropout=dropout,
            ff_dropout=dropout,
        )
    )


def load_network(repository: str, folder: str | Path, module: str, stand_ins: dict[str, dict] | None = None) -> type:
    """The authors' class `Model` in `module` of the checkout `folder`.

    Raises:
        ValueError: there is no such file, so `folder` is no checkout of `repository`.
    """
    file = Path(*module.split(".")).with_suffix(".py")
    if not (Path(folder) / file).is_file():
        raise ValueError(f"'{folder}' is no checkout of {repository}: it has no {file}")
    with importable(folder, STAND_INS | (stand_ins or {})):
        return import_module(module).Model


@contextmanager
def importable(folder: str | Path, stand_ins: dict[str, dict[str, Any]]) -> Iterator[None]:
    """The checkout's top-level names for as long as the block lasts, and nobody else's; `stand_ins` where they are absent."""
    packages = {path.stem for path in Path(folder).iterdir() if path.is_dir() or path.suffix == ".py"}

    def taken() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in packages]

    own = {name: sys.modules.pop(name) for name in taken()}
    added = {name: ModuleType(name) for name in stand_ins if name not in sys.modules}
    for name, module in added.items():
        vars(module).update(stand_ins[name])
    sys.modules.update(added)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [*taken(), *added]:
            del sys.modules[name]
        sys.modules.update(own)
