"""T2T-ViT: the sizes of the published models, and how well the performer's random features stand for softmax attention."""

from __future__ import annotations

from functools import partial

import torch

from hf_ext.layers.tokens_to_token import TokenPerformer
from hf_ext.models.t2t_vit import T2TViTConfig, T2TViTForImageClassification

from . import Experiment, Row, Run
from .counting import multiply_adds

PAPER = {
    "t2t-vit-7": ("4.3 M", "1.1"),
    "t2t-vit-10": ("5.9 M", "1.5"),
    "t2t-vit-12": ("6.9 M", "1.8"),
    "t2t-vit-14": ("21.5 M", "4.8"),
    "t2t-vit-19": ("39.2 M", "8.5"),
    "t2t-vit-24": ("64.1 M", "13.8"),
    "t2t-vit-t-14": ("21.5 M", "6.1"),
    "t2t-vit-t-19": ("39.2 M", "9.8"),
    "t2t-vit-t-24": ("64.1 M", "15.0"),
}
TOKENS, WIDTH, DRAWS = 196, 64, 10


def measure_sizes(run: Run) -> list[Row]:
    rows = []
    for name, (parameters, gmacs) in PAPER.items():
        with torch.device("meta"):
            state = _build(name).state_dict()
        count = sum(tensor.numel() for tensor in state.values())
        rows += [
            Row(f"{name}: parameters, with fixed positions and random features", count, paper=parameters),
            Row(f"{name}: GMACs at 224x224", multiply_adds(partial(_build, name), 1, 3, 224, 224), paper=gmacs),
        ]
    return rows


def _build(name: str) -> T2TViTForImageClassification:
    model = T2TViTForImageClassification(T2TViTConfig.from_preset(name))
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


def measure_performer(run: Run) -> list[Row]:
    """Relative error of the attention output against softmax(q k^T) v, for short and for ordinary queries and keys."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, TOKENS, WIDTH, generator=generator) for _ in range(3))
    layer = TokenPerformer(T2TViTConfig(), WIDTH, WIDTH)
    rows = []
    for deviation in (0.1, 1.0):  # of the logits
        q, k = (x * deviation**0.5 * WIDTH**-0.25 for x in (query, key))
        exact = (q @ k.transpose(1, 2)).softmax(-1) @ value
        for features in (8, 32, 128, 512):
            errors = []
            for seed in range(DRAWS):
                torch.manual_seed(1 + seed)  # 0 would repeat the numbers of the queries
                layer.random_features = layer.draw_features(features, WIDTH)
                errors.append((layer.mix(q, k, value) - exact).norm() / exact.norm())
            name = f"relative error, logits of deviation {deviation:g}, {features} features"
            note = "the published models" if features == 32 else ""
            rows.append(Row(name, torch.stack(errors).mean().item(), note=note))
    return rows


EXPERIMENTS = {
    "performer": Experiment("Random features against softmax attention", measure_performer, minutes=0.2),
    "sizes": Experiment("Parameters and multiply-additions", measure_sizes, minutes=0.5),
}
