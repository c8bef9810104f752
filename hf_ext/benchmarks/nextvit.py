"""Next-ViT-S, fused, against the authors' network with its norms merged (`--reference`: a checkout of bytedance/Next-ViT)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint

from .references import image_contests, load_module

REPOSITORY = "bytedance/Next-ViT"
SMALL = {"stem_chs": [64, 32, 64], "depths": [3, 4, 10, 3], "path_dropout": 0.1}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    utils = load_module(REPOSITORY, reference, "classification/utils.py")
    stand_ins = {"utils": {"merge_pre_bn": utils.merge_pre_bn}, "einops": {"rearrange": _rearrange}}
    module = load_module(REPOSITORY, reference, "classification/nextvit.py", stand_ins)
    torch.manual_seed(0)
    peer = module.NextViT(**SMALL).eval()
    ours = convert_checkpoint("nextvit", peer.state_dict(), SMALL).fuse()
    peer.merge_bn()
    yield from image_contests("Next-ViT-S, 224x224", ours, peer, REPOSITORY, 224)


def _rearrange(x: torch.Tensor, pattern: str, h: int | None = None) -> torch.Tensor:
    """The two rearrangements that the network asks einops for: 'b c h w -> b (h w) c', and back."""
    return x.flatten(2).transpose(1, 2) if h is None else x.transpose(1, 2).unflatten(2, (h, -1))
