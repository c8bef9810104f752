"""FMViT: the size of the default network, and what folding its branches gives on a CPU. The paper's sizes are not published."""

from __future__ import annotations

import torch

from hf_ext.models.fmvit import FMViTConfig, FMViTForImageClassification

from . import Experiment, Row, Run
from .counting import size_rows
from .fusing import fusion_rows, settle_statistics


def measure(run: Run) -> list[Row]:
    torch.manual_seed(0)
    return [
        *size_rows("default, training form", _build, 224, "", ""),
        *size_rows("default, fused", lambda: _build(fused=True), 224, "", ""),
        *fusion_rows("default", settle_statistics(_build(), 96), 224),
    ]


def _build(**overrides: bool) -> FMViTForImageClassification:
    model = FMViTForImageClassification(FMViTConfig.from_preset("fmvit", **overrides))
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


EXPERIMENTS = {"sizes": Experiment("Parameters, multiply-additions, and folding on a CPU", measure, minutes=1)}
