"""EfficientFormer: the sizes of table 1 of the paper, and what folding BatchNorm and layer scale gives on a CPU."""

from __future__ import annotations

from functools import partial

import torch

from hf_ext.models.efficientformer import EfficientFormerConfig, EfficientFormerForImageClassification

from . import Experiment, Row, Run
from .counting import size_rows
from .fusing import fusion_rows, settle_statistics

PAPER = {"l1": ("12.3 M", "1.3"), "l3": ("31.3 M", "3.9"), "l7": ("82.1 M", "10.2")}


def measure(run: Run) -> list[Row]:
    rows = [
        row
        for name, (parameters, gmacs) in PAPER.items()
        for row in size_rows(f"EfficientFormer-{name.upper()}", partial(_build, name), 224, parameters, gmacs)
    ]
    torch.manual_seed(0)
    model = settle_statistics(_build("l1", layer_scale_init_value=0.1), 224)  # at 1e-5 the branches would not count
    return rows + fusion_rows("EfficientFormer-L1", model, 224)


def _build(name: str, **overrides: float) -> EfficientFormerForImageClassification:
    config = EfficientFormerConfig.from_preset(f"efficientformer-{name}", **overrides)
    model = EfficientFormerForImageClassification(config)
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


EXPERIMENTS = {"sizes": Experiment("Parameters, multiply-additions, and folding on a CPU", measure, minutes=1)}
