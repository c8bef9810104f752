"""The STGCN at the size of LargeST's San Diego and at 40 sensors, two threads, fp32: inference and training step.

Peer: LargeST's STGCN (`--reference`: a checkout of liuxu77/LargeST) with the same weights on the same fixed graph, which for ours is the
mode "distance"; virtual nodes exist on our side only.
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
from hf_ext.layers.graph import graph_operator, without_self_loops

REPOSITORY, FILE = "liuxu77/LargeST", "src/models/stgcn.py"
SIZES = {"San Diego, 716 sensors, batch 2": (716, 2), "40 sensors, batch 16": (40, 16)}
HORIZON, CHANNELS = 20, 3
BLOCKS = [[64, 16, 64], [64, 16, 64], [128, 128]]


class BaseModel(nn.Module):
    """What the network needs of LargeST's base class."""

    def __init__(self, node_num: int, seq_len: int):
        super().__init__()
        self.node_num, self.seq_len = node_num, seq_len


STAND_INS = {"src": {}, "src.base": {}, "src.base.model": {"BaseModel": BaseModel}}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    network_class = load_module(REPOSITORY, reference, FILE, STAND_INS).STGCN
    for name, (sensors, batch) in SIZES.items():
        torch.manual_seed(0)
        links = (torch.rand(sensors, sensors) < 24 / sensors).float()
        adjacency = without_self_loops(links * torch.rand(sensors, sensors))
        operator, blocks = graph_operator(adjacency), [[CHANNELS], *BLOCKS, [HORIZON]]
        network = network_class(operator, blocks, Kt=3, Ks=3, dropout=0.5, node_num=sensors, seq_len=12)
        arguments = {"num_nodes": sensors, "adjacency_mode": "distance", "horizon": HORIZON, "input_dim": CHANNELS}
        ours = convert_checkpoint("virtual_nodes", network.state_dict(), arguments)
        ours.set_graph(adjacency)
        past, future = (batch, 12, sensors, CHANNELS), (batch, HORIZON, sensors, 1)
        inputs = random_inputs(past_values=past, future_values=future)
        peer = WithLoss(network, lambda network, past_values, future_values: network(past_values))
        yield from pair(name, "LargeST's STGCN", runs(ours, inputs), runs(peer, inputs), threads=2)
