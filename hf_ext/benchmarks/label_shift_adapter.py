"""What a label shift adapter adds to a classifier, and what Tent and IABN cost against plain inference and their authors' code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterForImageClassification
from hf_ext.layers.iabn import InstanceAwareBatchNorm
from hf_ext.training.test_time_adaptation import TestTimeAdapter

from . import Contest
from .references import load_module

LABELS = {"num_labels": 100}
TENT, IABN = "tent.py", "utils/iabn.py"  # what the two authors' repositories are known by


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """One thread, fp32. `reference`: a checkout of DequanWang/tent or of TaesikGong/NOTE, or a folder that holds both."""
    images = torch.randn(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for name, base in (("ViT-Tiny", vit()), ("ResNet-18", resnet())):
        adapted = LabelShiftAdapterForImageClassification.from_base(base)
        ours, peer = engine(adapted, "none", images), engine(base, "none", images)
        yield Contest(f"{name} with label shift adapter, batch 8", ours, peer, f"{name} without", threads=1)
    for method in ("norm", "iabn", "tent"):
        ours, peer = engine(resnet(), method, images), engine(resnet(), "none", images)
        yield Contest(f"ResNet-18, {method}, batch 8", ours, peer, "plain inference", threads=1)
    if reference is not None:
        yield from against_authors(Path(reference), images)


def resnet() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, **LABELS)).eval()


def vit() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=128, **LABELS)).eval()


def engine(model: PreTrainedModel, method: str, images: torch.Tensor) -> Callable[[], None]:
    adapter = TestTimeAdapter(model, method)
    return lambda: adapter(images)


def against_authors(folder: Path, images: torch.Tensor) -> Iterator[Contest]:
    checkouts = {
        file: place for place in (folder, *folder.iterdir()) for file in (TENT, IABN) if (place / file).is_file()
    }
    if not checkouts:
        raise ValueError(f"'{folder}' holds no checkout of DequanWang/tent ({TENT}) nor of TaesikGong/NOTE ({IABN})")
    if TENT in checkouts:
        tent = load_module("DequanWang/tent", checkouts[TENT], TENT)
        ours, peer = engine(resnet(), "tent", images), theirs(tent, images)
        yield Contest("ResNet-18, tent, batch 8", ours, peer, "the authors' Tent", threads=1)
    if IABN in checkouts:
        options = SimpleNamespace(iabn_k=4.0, skip_thres=1)
        iabn = load_module("TaesikGong/NOTE", checkouts[IABN], IABN, {"conf": {"args": options}})
        for shape in ((32, 64, 32, 32), (32, 256, 8, 8)):
            yield layer_contest(iabn, shape)


def theirs(tent: object, images: torch.Tensor) -> Callable[[], None]:
    """The authors' Tent around the classifier's logits."""

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = resnet()

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.classifier(pixel_values).logits

    model = tent.configure_model(Logits())
    parameters, _ = tent.collect_params(model)
    adapted = tent.Tent(model, torch.optim.Adam(parameters, lr=1e-3))
    return lambda: adapted(images)


def layer_contest(iabn: object, shape: tuple[int, ...]) -> Contest:
    """The layer alone, in eval mode."""
    torch.manual_seed(0)
    x, norm = torch.randn(shape), nn.BatchNorm2d(shape[1])
    peer = iabn.InstanceAwareBatchNorm2d(shape[1], k=4.0)
    peer._bn = deepcopy(norm)
    ours, peer = InstanceAwareBatchNorm(norm, k=4.0).eval(), peer.eval()
    name = f"IABN layer, {'x'.join(map(str, shape))}"
    return Contest(name, inference(ours, x), inference(peer, x), "the authors' layer", threads=1)


def inference(module: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return torch.no_grad()(lambda: module(x))
