"""Next-ViT: the sizes of table 4 of the paper, and what folding BatchNorm gives on a CPU."""

from __future__ import annotations

from functools import partial

import torch

from hf_ext.models.nextvit import NextViTConfig, NextViTForImageClassification

from . import Experiment, Row, Run
from .counting import size_rows
from .fusing import fusion_rows, settle_statistics

PAPER = {"small": ("31.7 M", "5.8"), "base": ("44.8 M", "8.3"), "large": ("57.8 M", "10.8")}


def measure(run: Run) -> list[Row]:
    rows = [
        row
        for name, (parameters, gmacs) in PAPER.items()
        for row in size_rows(f"Next-ViT-{name[0].upper()}", partial(_build, name), 224, parameters, gmacs)
    ]
    torch.manual_seed(0)
    return rows + fusion_rows("Next-ViT-S", settle_statistics(_build("small"), 96), 224)


def _build(name: str) -> NextViTForImageClassification:
    model = NextViTForImageClassification(NextViTConfig.from_preset(f"nextvit-{name}"))
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


EXPERIMENTS = {"sizes": Experiment("Parameters, multiply-additions, and folding on a CPU", measure, minutes=1)}
