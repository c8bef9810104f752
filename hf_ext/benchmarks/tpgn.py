"""TPGN's parts against what a user would take instead, one thread, fp32.

The PGN layer on whole sequences against torch's GRU and LSTM of the same widths: the paper offers it in their place. The forecaster
at the ETTh1 and the Traffic preset against upstream's PatchTST of its default depth: for Traffic of the same width, for ETTh1 of 16,
since 2 is too little for attention heads. The authors' code has no licence and is not run.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest, forecasting
from hf_ext.models.tpgn import PGNLayer, TPGNConfig, TPGNForPrediction

SEQUENCES = ((32, 168, 64), (16, 720, 64))  # batch, steps, width of inputs and hidden states
RNNS = {"nn.GRU": nn.GRU, "nn.LSTM": nn.LSTM}
BATCH = 32


def contests(reference: Path | None) -> Iterator[Contest]:
    """`reference` is not used."""
    for batch, steps, width in SEQUENCES:
        inputs = forecasting.random_inputs(inputs=(batch, steps, width))
        for name, rnn in RNNS.items():
            yield from forecasting.pair(
                f"PGN, {steps} steps, width {width}, batch {batch}",
                name,
                forecasting.runs(Sequence(PGNLayer(width, width, window=steps - 1)), inputs),
                forecasting.runs(Sequence(rnn(width, width, batch_first=True)), inputs),
            )
    for preset, width in (("etth1-168", 16), ("traffic-168", 128)):
        config = TPGNConfig.from_preset(preset)
        inputs = forecasting.random_inputs(
            past_values=(BATCH, config.context_length, 1),
            past_time_features=(BATCH, config.context_length, config.num_time_features),
            future_values=(BATCH, config.prediction_length, 1),
        )
        sizes = Namespace(
            context_length=config.context_length,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
        without_calendar = {name: tensor for name, tensor in inputs.items() if name != "past_time_features"}
        yield from forecasting.pair(
            f"{preset}, batch {BATCH}",
            f"PatchTST, 3 layers of width {width}",
            forecasting.runs(TPGNForPrediction(config), inputs),
            forecasting.runs(forecasting.patchtst(sizes, 1, config.prediction_length, 0.0), without_calendar),
        )


class Sequence(nn.Module):
    """A recurrent layer, or one in its place, with a loss that reaches every step."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> Namespace:
        hidden_states, _ = self.layer(inputs)
        return Namespace(loss=hidden_states.square().mean())
