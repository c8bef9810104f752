"""DWFormer with BatchNorm folded (`model.fuse()`) against the same network unfolded, one thread, fp32, batch 1 and 8.

The authors' network is not run here, and no peer of its kind is in Transformers or Diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hf_ext.benchmarks import Contest
from hf_ext.models.dwformer import DWFormerConfig, DWFormerForImageRestoration

SIZE = 128


def contests(reference: Path | None) -> Iterator[Contest]:
    torch.manual_seed(0)
    peer = DWFormerForImageRestoration(DWFormerConfig()).eval()
    ours = deepcopy(peer).fuse()
    for batch in (1, 8):
        images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        yield Contest(
            name=f"DWFormer, {SIZE}x{SIZE}, batch {batch}, forward",
            ours=_forward(ours, images),
            peer=_forward(peer, images),
            peer_name="DWFormer, not fused",
            threads=1,
        )


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    return partial(torch.inference_mode()(model), images)
