"""iTransformer at two published sizes, one thread, fp32: inference and training step.

Peers: the authors' network (`--reference`: a checkout of thuml/iTransformer) with the same weights, and, where tokens are few
enough for the comparison to make sense, upstream's PatchTST at equal width and depth.
"""

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
from hf_ext.convert import convert_checkpoint
from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction

TIME_FEATURES = 4
# what only the authors' constructor asks for
UNUSED = {"output_attention": False, "embed": "timeF", "freq": "h", "class_strategy": "projection", "factor": 1}


def contests(reference: Path | None) -> Iterator[Contest]:
    """ETTh1 (batch 32, 7 variates, width 256) against both peers; Traffic (batch 1, 862 variates, width 512) against the authors'."""
    if reference is not None:
        yield from against_authors("ETTh1 96 -> 96, batch 32", "etth1-96", 32, load_reference(reference))
        yield from against_authors("Traffic 96 -> 96, batch 1", "traffic-96", 1, load_reference(reference))
    config = ITransformerConfig.from_preset("etth1-96")
    inputs = windows(config, 32)
    without_calendar = {name: tensor for name, tensor in inputs.items() if name != "past_time_features"}
    yield from pair(
        "ETTh1 96 -> 96, batch 32",
        "PatchTST, equal width",
        runs(ITransformerForPrediction(config), inputs),
        runs(patchtst(config), without_calendar),
    )


def pair(name: str, peer_name: str, ours: dict[str, Callable], peer: dict[str, Callable]) -> Iterator[Contest]:
    for work in ours:
        yield Contest(f"{name}, {work}", ours[work], peer[work], peer_name, threads=1)


def against_authors(name: str, preset: str, batch: int, reference_class: type[nn.Module]) -> Iterator[Contest]:
    config = ITransformerConfig.from_preset(preset)
    arguments = {
        "seq_len": config.context_length,
        "pred_len": config.prediction_length,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "e_layers": config.num_hidden_layers,
        "d_ff": config.intermediate_size,
        "dropout": config.dropout,
        "activation": "gelu",
        "use_norm": True,
    }
    torch.manual_seed(0)
    peer = reference_class(Namespace(**arguments, **UNUSED))
    ours = convert_checkpoint("itransformer", peer.state_dict(), arguments)
    inputs = windows(config, batch)
    yield from pair(name, "thuml/iTransformer", runs(ours, inputs), runs(Wrapped(peer), inputs))


class Wrapped(nn.Module):
    """The authors' network with the loss that their training loop takes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(
        self, past_values: torch.Tensor, past_time_features: torch.Tensor, future_values: torch.Tensor
    ) -> Namespace:
        forecast = self.network(past_values, past_time_features, None, None)
        return Namespace(loss=nn.functional.mse_loss(forecast, future_values))


def patchtst(config: ITransformerConfig) -> PatchTSTForPrediction:
    """Patches of 16 steps, 8 apart, as in the PatchTST paper; width, depth and heads of `config`."""
    return PatchTSTForPrediction(
        PatchTSTConfig(
            num_input_channels=config.num_input_channels,
            context_length=config.context_length,
            prediction_length=config.prediction_length,
            patch_length=16,
            patch_stride=8,
            d_model=config.hidden_size,
            ffn_dim=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            attention_dropout=config.dropout,
            ff_dropout=config.dropout,
        )
    )


def windows(config: ITransformerConfig, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "past_values": (batch, config.context_length, config.num_input_channels),
        "past_time_features": (batch, config.context_length, TIME_FEATURES),
        "future_values": (batch, config.prediction_length, config.num_input_channels),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


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


def load_reference(folder: str | Path) -> type[nn.Module]:
    """The authors' class `Model`. What its modules import for other models (reformer_pytorch, einops) is stood in for where absent."""
    if not (Path(folder) / "model" / "iTransformer.py").is_file():
        raise ValueError(f"'{folder}' is no checkout of thuml/iTransformer: it has no model/iTransformer.py")
    with _importable(folder):
        return import_module("model.iTransformer").Model


@contextmanager
def _importable(folder: str | Path) -> Iterator[None]:
    """The checkout's top-level names (`model`, `layers`, `utils`) for as long as the block lasts, and nobody else's."""
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("model", "layers", "utils")}
    stand_ins: dict[str, Any] = {name: ModuleType(name) for name in ("reformer_pytorch", "einops")}
    stand_ins["reformer_pytorch"].LSHSelfAttention = stand_ins["einops"].rearrange = None
    added = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    for name in own:
        del sys.modules[name]
    sys.modules.update(added)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("model", "layers", "utils") or name in added
        ]:
            del sys.modules[name]
        sys.modules.update(own)
