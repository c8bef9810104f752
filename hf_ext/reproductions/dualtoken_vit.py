"""DualToken-ViT: what the presets weigh and cost, and how the cost grows with the image."""

from __future__ import annotations

from functools import partial

from hf_ext.models.dualtoken_vit import DualTokenViTConfig, DualTokenViTForImageClassification

from . import Experiment, Row, Run
from .counting import multiply_adds, size_rows

PAPER_GMACS = {"tiny-mix": "0.5", "small-mix": "1.0", "small": ""}  # the paper's counts of parameters are not at hand


def measure(run: Run) -> list[Row]:
    rows = [
        row
        for name, gmacs in PAPER_GMACS.items()
        for row in size_rows(f"dualtoken-vit-{name}", partial(_build, name), 224, "", gmacs)
    ]
    for size in (224, 448, 896):
        per_megapixel = multiply_adds(partial(_build, "small-mix"), 1, 3, size, size) / size**2 * 1e6
        rows.append(Row(f"dualtoken-vit-small-mix: GMACs per megapixel at {size}x{size}", per_megapixel))
    return rows


def _build(name: str) -> DualTokenViTForImageClassification:
    model = DualTokenViTForImageClassification(DualTokenViTConfig.from_preset(f"dualtoken-vit-{name}"))
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


EXPERIMENTS = {"sizes": Experiment("Parameters, multiply-additions and their growth", measure, minutes=0.5)}
