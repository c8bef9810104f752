"""DB-Swin-T beside upstream's Swin-B, the single larger backbone that costs as much.

A comparison of two models: the authors' class needs mmcv and mmdetection, which are no dependencies here (`--reference` is not used).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import SwinBackbone, SwinConfig

from hf_ext.benchmarks import Contest
from hf_ext.models.cbnet import CompositeBackbone, CompositeBackboneConfig

from .references import image_contests

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def contests(reference: Path | None) -> Iterator[Contest]:
    torch.manual_seed(0)
    ours = CompositeBackbone(CompositeBackboneConfig.from_preset("db-swin-t")).eval()
    config = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], out_features=STAGES)
    peer = SwinBackbone(config).eval()
    yield from image_contests("db-swin-t, 224x224", ours, peer, "Swin-B (another model)", 224)
