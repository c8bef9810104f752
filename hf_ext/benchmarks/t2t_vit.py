"""T2T-ViT against the authors' network (`--reference`: a checkout of yitu-opensource/T2T-ViT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint

from .references import image_contests, load_module

REPOSITORY = "yitu-opensource/T2T-ViT"
T2T_VIT_14: dict[str, Any] = {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0}
VARIANTS = {"T2T-ViT-14": "performer", "T2T-ViT_t-14": "transformer"}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    module = load_module(REPOSITORY, reference, "models/t2t_vit.py")
    for name, tokens_type in VARIANTS.items():
        arguments = {**T2T_VIT_14, "tokens_type": tokens_type}
        torch.manual_seed(0)
        with redirect_stdout(StringIO()):  # the authors' constructor prints
            peer = module.T2T_ViT(**arguments).eval()
        ours = convert_checkpoint("t2t_vit", peer.state_dict(), arguments)
        yield from image_contests(f"{name}, 224x224", ours, peer, REPOSITORY, 224)
