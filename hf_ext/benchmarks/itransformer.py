"""iTransformer at two published sizes, one thread, fp32: inference and training step.

Peers: the authors' network (`--reference`: a checkout of thuml/iTransformer) with the same weights, and, where tokens are few
enough for the comparison to make sense, upstream's PatchTST at equal width and depth.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest, forecasting
from hf_ext.convert import convert_checkpoint
from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction

TIME_FEATURES = 4
# what only the authors' constructor asks for
UNUSED = {"output_attention": False, "embed": "timeF", "freq": "h", "class_strategy": "projection", "factor": 1}


def contests(reference: Path | None) -> Iterator[Contest]:
    """ETTh1 (batch 32, 7 variates, width 256) against both peers; Traffic (batch 1, 862 variates, width 512) against the authors'."""
    if reference is not None:
        network = forecasting.load_network("thuml/iTransformer", reference, "model.iTransformer")
        yield from against_authors("ETTh1 96 -> 96, batch 32", "etth1-96", 32, network)
        yield from against_authors("Traffic 96 -> 96, batch 1", "traffic-96", 1, network)
    config = ITransformerConfig.from_preset("etth1-96")
    inputs = windows(config, 32)
    without_calendar = {name: tensor for name, tensor in inputs.items() if name != "past_time_features"}
    peer = forecasting.patchtst(config, config.num_input_channels, config.prediction_length, config.dropout)
    yield from forecasting.pair(
        "ETTh1 96 -> 96, batch 32",
        "PatchTST, equal width",
        forecasting.runs(ITransformerForPrediction(config), inputs),
        forecasting.runs(peer, without_calendar),
    )


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
    network = reference_class(Namespace(**arguments, **UNUSED))
    ours = convert_checkpoint("itransformer", network.state_dict(), arguments)
    peer = forecasting.WithLoss(
        network,
        lambda network, past_values, past_time_features, **others: network(past_values, past_time_features, None, None),
    )
    inputs = windows(config, batch)
    yield from forecasting.pair(
        name, "thuml/iTransformer", forecasting.runs(ours, inputs), forecasting.runs(peer, inputs)
    )


def windows(config: ITransformerConfig, batch: int) -> dict[str, torch.Tensor]:
    return forecasting.random_inputs(
        past_values=(batch, config.context_length, config.num_input_channels),
        past_time_features=(batch, config.context_length, TIME_FEATURES),
        future_values=(batch, config.prediction_length, config.num_input_channels),
    )
