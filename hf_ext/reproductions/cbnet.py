"""CBNet: what the presets weigh, and what links that begin as zero leave of a trained backbone."""

from __future__ import annotations

from functools import partial

import torch
from transformers import PreTrainedModel, ResNetBackbone, ResNetConfig, SwinBackbone, SwinConfig

from hf_ext.models.cbnet import CompositeBackbone, CompositeBackboneConfig

from . import Experiment, Row, Run

SIZES = {
    "db-swin-t": "55682676",
    "db-swin-s": "98318484",
    "db-swin-b": "174631792",
    "db-swin-l": "392569128",
    "db-resnet50": "51384000",
    "db-resnet101": "89368256",
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def measure(run: Run) -> list[Row]:
    rows = [
        Row(f"{name}: parameters", _parameters(name), paper=count, note="the authors' class, counted")
        for name, count in SIZES.items()
    ]
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    resnet = ResNetBackbone(ResNetConfig(depths=[3, 4, 6, 3], out_features=STAGES)).eval()
    swin = SwinBackbone(SwinConfig(out_features=STAGES)).eval()
    difference = partial(_difference, images=images)
    return [
        *rows,
        Row("DB-ResNet50, zero links: largest difference of the lead's maps from one ResNet-50's", difference(resnet, 1)),
        Row("DB-Swin-T, zero links: largest difference of the lead's maps from one Swin-T's", difference(swin, 0)),
    ]  # fmt: skip


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in CompositeBackbone(CompositeBackboneConfig.from_preset(name)).parameters())


@torch.no_grad()
def _difference(single: PreTrainedModel, prune_stages: int, images: torch.Tensor) -> float:
    """The largest, over all maps, of the lead's distance from the backbone that it is a copy of."""
    lead = CompositeBackbone.from_backbones(single, prune_stages=prune_stages)(images).feature_maps
    return max((ours - theirs).abs().max().item() for ours, theirs in zip(lead, single(images).feature_maps))


EXPERIMENTS = {"composition": Experiment("Parameters, and the lead with links of zero", measure, minutes=0.5)}
