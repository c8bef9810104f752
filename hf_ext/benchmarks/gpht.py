"""GPHT at its published size and at the small one, two threads, fp32, ETTh1's windows of 336 steps and 7 variates.

Peers: the authors' network (`--reference`: a checkout of icantnamemyself/GPHT) with the same weights, and upstream's PatchTST with
as many layers of the same width.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest, forecasting
from hf_ext.convert import convert_checkpoint
from hf_ext.models.gpht import GPHTConfig, GPHTForPrediction

VARIATES, HORIZON, THREADS = 7, 336, 2
BATCHES = {"gpht-base": 8, "gpht-small": 32}


def contests(reference: Path | None) -> Iterator[Contest]:
    """Inference (one pass), the rolled forecast of 336 steps, and the training step of the ETTh1 windows."""
    if reference is not None:
        network = forecasting.load_network("icantnamemyself/GPHT", reference, "models.GPHT")
        for preset, batch in BATCHES.items():
            yield from against_authors(f"{preset}, batch {batch}", preset, batch, network)
    for preset, batch in BATCHES.items():
        config = GPHTConfig.from_preset(preset)
        ours, inputs = GPHTForPrediction(config), windows(config, batch)
        config.num_hidden_layers *= len(config.pooling_rates)
        peer = forecasting.patchtst(config, VARIATES, config.token_length, config.dropout)
        yield from forecasting.pair(
            f"{preset}, batch {batch}",
            "PatchTST, equal width and depth",
            forecasting.runs(ours, inputs),
            forecasting.runs(peer, inputs),
            THREADS,
        )


def against_authors(name: str, preset: str, batch: int, reference_class: type[nn.Module]) -> Iterator[Contest]:
    config = GPHTConfig.from_preset(preset)
    arguments = {
        "seq_len": config.context_length,
        "token_len": config.token_length,
        "pred_len": config.token_length,
        "GT_pooling_rate": config.pooling_rates,
        "depth": len(config.pooling_rates),
        "GT_d_model": config.hidden_size,
        "GT_d_ff": config.intermediate_size,
        "GT_e_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "dropout": config.dropout,
        "activation": "gelu",
        "factor": 1,
        "output_attention": False,
    }
    torch.manual_seed(0)
    network = reference_class(Namespace(**arguments))
    ours = convert_checkpoint("gpht", network.state_dict(), arguments)
    shift = config.token_length
    peer = forecasting.WithLoss(
        network,
        lambda network, past_values, **others: network(past_values, None, None, None),
        lambda past_values, future_values: torch.cat([past_values[:, shift:], future_values], dim=1),
    )
    inputs = windows(config, batch)
    yield from forecasting.pair(
        name, "icantnamemyself/GPHT", forecasting.runs(ours, inputs), forecasting.runs(peer, inputs), THREADS
    )
    past = inputs["past_values"]

    @torch.no_grad()
    def roll() -> None:
        ours.eval()(past, prediction_length=HORIZON)

    @torch.no_grad()
    def peer_roll() -> None:
        """The authors' test loop."""
        network.eval()
        window = past
        for _ in range(-(-HORIZON // shift)):
            forecast = network(window, None, None, None)[:, -shift:]
            window = torch.cat([window, forecast], dim=1)[:, -config.context_length :]

    yield Contest(f"{name}, {HORIZON} steps", roll, peer_roll, "icantnamemyself/GPHT", threads=THREADS)


def windows(config: GPHTConfig, batch: int) -> dict[str, torch.Tensor]:
    return forecasting.random_inputs(
        past_values=(batch, config.context_length, VARIATES), future_values=(batch, config.token_length, VARIATES)
    )
