"""SLAB, fused, against the authors' networks (`--reference`: a checkout of xinghaochen/SLAB), as they are after training, and against
Transformers' Swin and ViT of the same widths and depths.

The authors' own merge is left out: after it their Swin computes something else (see `hf_ext/models/slab/modeling_slab.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint
from hf_ext.models.slab import SlabConfig, SlabForImageClassification

from .references import image_contests, load_module

REPOSITORY = "xinghaochen/SLAB"
SWIN = {"window_size": 56, "attn_type": "LLSS"}  # the other arguments have the defaults of Swin-T
DEIT = {"embed_dim": 192, "num_heads": 3}


def contests(reference: Path | None) -> Iterator[Contest]:
    for name, preset, title, peer in (
        ("SLAB-Swin-T", "slab-swin-t", "Swin-T", swin),
        ("SLAB-DeiT-T", "slab-deit-t", "ViT-T", vit),
    ):
        torch.manual_seed(0)
        ours = SlabForImageClassification(SlabConfig.from_preset(preset)).eval().fuse()
        yield from image_contests(f"{name}, 224x224", ours, peer(), f"Transformers' {title}", 224)
    if reference is None:
        return
    prepbn = load_module(REPOSITORY, reference, "classification/models/prepbn.py")
    stand_ins = {"einops": {"rearrange": _rearrange}, "models": {}, "models.prepbn": dict(vars(prepbn))}
    for name, file, network, arguments in (
        ("SLAB-Swin-T", "slab_swin", "SlabSwinTransformer", SWIN),
        ("SLAB-DeiT-T", "slab_deit", "VisionTransformer", DEIT),
    ):
        module = load_module(REPOSITORY, reference, f"classification/models/{file}.py", stand_ins)
        torch.manual_seed(0)
        with redirect_stdout(io.StringIO()):  # it reports on every layer
            peer = getattr(module, network)(**arguments, **_norm(prepbn, file)).eval()
        ours = convert_checkpoint("slab", peer.state_dict(), arguments).fuse()
        yield from image_contests(f"{name}, 224x224", ours, peer, REPOSITORY, 224)


def swin() -> nn.Module:
    return SwinForImageClassification(SwinConfig(num_labels=1000)).eval()


def vit() -> nn.Module:
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    return ViTForImageClassification(config).eval()


def _norm(prepbn: Any, file: str) -> dict[str, Callable[[int], nn.Module]]:
    """DeiT is given its norm; Swin has it inside."""
    if file == "slab_swin":
        return {}
    return {"norm_layer": lambda width: prepbn.LinearNorm(width, nn.LayerNorm, prepbn.RepBN)}


PATTERNS: dict[str, Callable[..., torch.Tensor]] = {
    "b n (h c) -> (b h) n c": lambda x, h: x.unflatten(2, (h, -1)).transpose(1, 2).flatten(0, 1),
    "(b h) n c -> b n (h c)": lambda x, h: x.unflatten(0, (-1, h)).transpose(1, 2).flatten(2),
    "b (w h) c -> b c w h": lambda x, w, h: x.transpose(1, 2).unflatten(2, (w, h)),
    "b c w h -> b (w h) c": lambda x: x.flatten(2).transpose(1, 2),
}


def _rearrange(x: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    """The rearrangements that the networks ask einops for."""
    return PATTERNS[pattern](x, **sizes)
