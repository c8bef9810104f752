"""DiT with dynamic token routing against PVTv2 of Transformers, whose network its static path is, and against itself when every gate
selects all tokens. The authors published no code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PvtV2Config, PvtV2ForImageClassification

from hf_ext.benchmarks import Contest
from hf_ext.models.dit_router import DynamicTokenRoutingConfig, DynamicTokenRoutingForImageClassification
from hf_ext.reproductions.dit_router import select_share


def contests(reference: Path | None = None) -> Iterator[Contest]:
    torch.manual_seed(0)
    config = DynamicTokenRoutingConfig.from_preset("dit-router-b1")
    peer = PvtV2ForImageClassification(
        PvtV2Config(hidden_sizes=config.hidden_sizes, depths=config.depths, num_labels=1000)
    ).eval()
    static = DynamicTokenRoutingForImageClassification.from_pvt_v2(peer, routing="static")
    images = {batch: torch.randn(batch, 3, 224, 224) for batch in (1, 8)}
    for batch, pixel_values in images.items():
        yield Contest(
            f"B1, static path, 224x224, batch {batch}",
            ours=partial(torch.inference_mode()(static), pixel_values),
            peer=partial(torch.inference_mode()(peer), pixel_values),
            peer_name="PVTv2-B1 (Transformers)",
            threads=2,
        )
    for share in (0.5, 0.25):
        routed = [DynamicTokenRoutingForImageClassification(config).eval() for _ in range(2)]
        for model, selected in zip(routed, (share, 1.0)):
            select_share(model, images[1], selected)
        ours, whole = (partial(torch.inference_mode()(model), images[1]) for model in routed)
        yield Contest(
            f"B1, {share:.0%} of tokens selected, 224x224, batch 1", ours, whole, "all tokens selected", threads=2
        )
