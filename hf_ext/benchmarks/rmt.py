"""RMT, fused, against the authors' network (`--reference`: a checkout of qhfan/RMT)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint

from .references import image_contests, load_module

REPOSITORY = "qhfan/RMT"
COMMON = {
    "embed_dims": [64, 128, 256, 512],
    "num_heads": [4, 4, 8, 16],
    "init_values": [2, 2, 2, 2],
    "heads_ranges": [4, 4, 6, 6],
}
VARIANTS = {
    "RMT-T": {"depths": [2, 2, 8, 2], "mlp_ratios": [3, 3, 3, 3], "chunkwise_recurrents": [True, True, False, False]},
    "RMT-S": {"depths": [3, 4, 18, 4], "mlp_ratios": [4, 4, 3, 3], "chunkwise_recurrents": [True, True, True, False]},
}
UNUSED = {  # imported by the authors' file and not called by the network
    "fvcore": {},
    "fvcore.nn": {"FlopCountAnalysis": None, "flop_count_table": None},
    "einops": {"einsum": None},
}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    module = load_module(REPOSITORY, reference, "classfication_release/RMT.py", UNUSED)
    for name, sizes in VARIANTS.items():
        arguments = COMMON | sizes
        torch.manual_seed(0)
        peer = module.VisRetNet(**arguments).eval()
        ours = convert_checkpoint("rmt", peer.state_dict(), arguments).fuse()
        yield from image_contests(f"{name}, 224x224", ours, peer, REPOSITORY, 224)
