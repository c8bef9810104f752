"""FMViT, fused, against its own training form: the authors published no code."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

from hf_ext.benchmarks import Contest
from hf_ext.models.fmvit import FMViTConfig, FMViTForImageClassification

from .references import image_contests


def contests(reference: Path | None = None) -> Iterator[Contest]:
    torch.manual_seed(0)
    peer = FMViTForImageClassification(FMViTConfig.from_preset("fmvit")).eval()
    yield from image_contests("FMViT, 224x224", deepcopy(peer).fuse(), peer, "its training form", 224)
