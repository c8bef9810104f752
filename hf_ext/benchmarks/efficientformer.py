"""EfficientFormer, fused, against the authors' network (`--reference`: a checkout of snap-research/EfficientFormer)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint

from .references import image_contests, load_module

REPOSITORY = "snap-research/EfficientFormer"
VARIANTS = {"L1": ("l1", 1), "L3": ("l3", 4)}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    module = load_module(REPOSITORY, reference, "models/efficientformer.py")
    for name, (key, attention_blocks) in VARIANTS.items():
        arguments = {
            "layers": module.EfficientFormer_depth[key],
            "embed_dims": module.EfficientFormer_width[key],
            "downsamples": [True] * 4,
            "vit_num": attention_blocks,
        }
        torch.manual_seed(0)
        peer = module.EfficientFormer(**arguments).eval()
        ours = convert_checkpoint("efficientformer", peer.state_dict(), arguments).fuse()
        yield from image_contests(f"EfficientFormer-{name}, 224x224", ours, peer, REPOSITORY, 224)
