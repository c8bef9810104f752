"""DualToken-ViT, fused, beside LightViT-T (`--reference`: a checkout of hunto/image_classification_sota).

There is no code of the authors to run against. LightViT-T is the network that DualToken-ViT changes and that the paper compares itself
with; it does a fifth less work (0.7 against 0.87 billion multiply-additions), so this is a comparison of two models, not of two
implementations of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hf_ext.benchmarks import Contest
from hf_ext.models.dualtoken_vit import DualTokenViTConfig, DualTokenViTForImageClassification

from .references import image_contests, load_module

REPOSITORY = "hunto/image_classification_sota"


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    module = load_module(REPOSITORY, reference, "lib/models/lightvit.py")
    torch.manual_seed(0)
    peer = module.lightvit_tiny().eval()
    for name in ("tiny-mix", "small-mix"):
        config = DualTokenViTConfig.from_preset(f"dualtoken-vit-{name}")
        ours = DualTokenViTForImageClassification(config).eval().fuse()
        yield from image_contests(f"dualtoken-vit-{name}, 224x224", ours, peer, "LightViT-T (another model)", 224)
