"""STTN's gated form at the size of METR-LA and at 25 sensors, two threads, fp32: inference and training step.

Peer: LibCity's network (`--reference`: a checkout of LibCity/Bigscity-LibCity) with the same weights and graph. The authors' own code is
TensorFlow 1 and has no licence, so it is not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest
from hf_ext.benchmarks.forecasting import WithLoss, pair, random_inputs, runs
from hf_ext.benchmarks.references import load_module
from hf_ext.convert import convert_checkpoint
from hf_ext.layers.graph import without_self_loops

REPOSITORY, FILE = "LibCity/Bigscity-LibCity", "libcity/model/traffic_speed_prediction/STTN.py"
SIZES = {"METR-LA, 207 sensors, batch 4": (207, 4), "25 sensors, batch 16": (25, 16)}
ARGUMENTS = {"input_window": 12, "output_window": 12, "feature_dim": 1, "output_dim": 1, "embed_dim": 64}


class TrafficStateModel(nn.Module):
    """What the network needs of LibCity's base class."""

    def __init__(self, config: dict, data_feature: dict):
        super().__init__()
        self.data_feature = data_feature


STAND_INS = {
    "libcity": {},
    "libcity.model": {"loss": None},
    "libcity.model.abstract_traffic_state_model": {"AbstractTrafficStateModel": TrafficStateModel},
}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    network_class = load_module(REPOSITORY, reference, FILE, STAND_INS).STTN
    for name, (sensors, batch) in SIZES.items():
        torch.manual_seed(0)
        adjacency = without_self_loops(torch.rand(sensors, sensors))
        network = network_class(ARGUMENTS, {"adj_mx": adjacency.numpy().astype("float64"), "feature_dim": 1})
        ours = convert_checkpoint("sttn", network.state_dict(), ARGUMENTS)
        ours.set_graph(adjacency)
        shape = (batch, 12, sensors, 1)
        inputs = random_inputs(past_values=shape, future_values=shape)
        peer = WithLoss(network, lambda network, past_values, future_values: network({"X": past_values}))
        yield from pair(name, "LibCity's STTN", runs(ours, inputs), runs(peer, inputs), threads=2)
