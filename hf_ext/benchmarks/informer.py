"""Informer at two ETTh1 sizes in fp32: inference and training step; and its attention against full attention by length.

Peers: the authors' network (`--reference`: a checkout of zhouhaoyi/Informer2020) with the same weights, upstream's PatchTST at equal
width, and torch's `scaled_dot_product_attention`. Ours samples its keys in inference too, as the authors' network does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest
from hf_ext.benchmarks.forecasting import WithLoss, importable, pair, patchtst, random_inputs, runs
from hf_ext.convert import convert_checkpoint
from hf_ext.models.informer import InformerGenerativeConfig, InformerGenerativeForPrediction
from hf_ext.ops.prob_sparse_attention import prob_sparse_attention, sample_keys

BATCH, THREADS = 32, 2
PRESETS = {"etth1-24": "ETTh1 48 -> 24, batch 32", "etth1-168": "ETTh1 168 -> 168, batch 32"}
LENGTHS = (96, 384, 768, 1536, 3072)


def contests(reference: Path | None) -> Iterator[Contest]:
    for preset, name in PRESETS.items() if reference is not None else ():
        yield from against_authors(name, preset, reference)
    config = InformerGenerativeConfig.from_preset("etth1-168")
    inputs = windows(config)
    peer = patchtst(Sizes(config), config.num_input_channels, config.prediction_length, config.dropout)
    past = {name: inputs[name] for name in ("past_values", "future_values")}
    ours = InformerGenerativeForPrediction(config)
    yield from pair(PRESETS["etth1-168"], "PatchTST, equal width", runs(ours, inputs), runs(peer, past), THREADS)
    for length in LENGTHS:
        yield from against_full_attention(length)


class Sizes:
    """Informer's sizes under PatchTST's names; PatchTST has as many layers as encoder and decoder together."""

    def __init__(self, config: InformerGenerativeConfig):
        self.context_length, self.hidden_size = config.context_length, config.hidden_size
        self.intermediate_size, self.num_attention_heads = config.intermediate_size, config.num_attention_heads
        self.num_hidden_layers = sum(config.encoder_depths) + config.num_decoder_layers


def against_authors(name: str, preset: str, reference: Path) -> Iterator[Contest]:
    config = InformerGenerativeConfig.from_preset(preset)
    arguments = {
        "enc_in": config.num_input_channels,
        "dec_in": config.num_input_channels,
        "c_out": config.num_output_channels,
        "seq_len": config.context_length,
        "label_len": config.label_length,
        "out_len": config.prediction_length,
        "factor": config.sampling_factor,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "e_layers": config.encoder_depths[0],
        "d_layers": config.num_decoder_layers,
        "d_ff": config.intermediate_size,
        "dropout": config.dropout,
        "embed": "timeF",
    }
    torch.manual_seed(0)
    peer = load_network(reference)(**arguments)
    ours = convert_checkpoint("informer", peer.state_dict(), arguments)
    ours.model.key_sampler.seed = None
    inputs = windows(config)
    yield from pair(
        name, "zhouhaoyi/Informer2020", runs(ours, inputs), runs(WithLoss(peer, partial(call, config)), inputs), THREADS
    )


def call(
    config: InformerGenerativeConfig,
    network: nn.Module,
    past_values: torch.Tensor,
    past_time_features: torch.Tensor,
    future_time_features: torch.Tensor,
    future_values: torch.Tensor,
) -> torch.Tensor:
    """As the authors' training loop prepares a batch."""
    known = slice(config.context_length - config.label_length, None)
    values = torch.cat([past_values[:, known], torch.zeros_like(future_values)], 1)
    calendar = torch.cat([past_time_features[:, known], future_time_features], 1)
    return network(past_values, past_time_features, values, calendar)


def against_full_attention(length: int) -> Iterator[Contest]:
    """Forward passes of the encoder's attention, drawing of samples included: 8 heads of 64, batch 4."""
    q, k, v = torch.randn(3, 4, length, 8, 64, generator=torch.Generator().manual_seed(0)).unbind()

    def ours() -> None:
        prob_sparse_attention(q, k, v, sample_keys(length, length))

    def peer() -> None:
        nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    yield Contest(f"ProbSparse attention, {length} steps", ours, peer, "full attention (sdpa)", THREADS)


def windows(config: InformerGenerativeConfig) -> dict[str, torch.Tensor]:
    channels, features = config.num_input_channels, config.num_time_features
    return random_inputs(
        past_values=(BATCH, config.context_length, channels),
        past_time_features=(BATCH, config.context_length, features),
        future_time_features=(BATCH, config.prediction_length, features),
        future_values=(BATCH, config.prediction_length, channels),
    )


def load_network(folder: Path) -> Callable[..., nn.Module]:
    """The authors' class `Informer`."""
    if not (Path(folder) / "models" / "attn.py").is_file():
        raise ValueError(f"'{folder}' is no checkout of zhouhaoyi/Informer2020: it has no models/attn.py")
    with importable(folder, {}):
        return import_module("models.model").Informer
