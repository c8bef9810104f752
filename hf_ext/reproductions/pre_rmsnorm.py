"""Pre-RMSNorm: the pairwise checks of the reference's example.py on a ViT, in three precisions, and two trainings step by step."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils.logging import tqdm

from hf_ext.data.digits import handwritten_digits
from hf_ext.surgery.pre_rmsnorm import convert_pre_ln

from . import Experiment, Row, Run

# example.py's ViT: 32 x 32 images in patches of 4, batch 64
CONFIG = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_labels": 100,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
}


def equivalence(run: Run) -> list[Row]:
    """Pre-LN, Pre-LN with a mean-free stream, Pre-RMSNorm and Pre-CRMSNorm, all of them normal random weights, norms too."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**CONFIG)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    pixels = torch.randn(64, 3, 32, 32, dtype=torch.float64)
    exact = [logits(form, pixels) for form in forms(model)]
    single = [logits(form, pixels.float()) for form in forms(model.float())]
    half = [(logits(form.bfloat16(), pixels.bfloat16()).double() - exact[0]).norm() for form in forms(model)]
    scale = exact[0].abs().max().item()
    return [
        Row(
            "pairs of forms that are close, float64",
            sum(torch.allclose(a, b) for a, b in combinations(exact, 2)),
            "6 of 6",
        ),
        Row("largest difference of two forms, float64", farthest(exact) / scale, note="of the largest logit"),
        Row("largest difference of two forms, float32", farthest(single) / scale, note="of the largest logit"),
        Row("error of Pre-LN, bfloat16", (half[0] / exact[0].norm()).item()),
        Row("error of Pre-RMSNorm, bfloat16", (half[2] / exact[0].norm()).item()),
        Row("error of Pre-CRMSNorm, bfloat16", (half[3] / exact[0].norm()).item()),
    ]


def forms(model: Any) -> list[Any]:
    return [
        model,
        convert_pre_ln(model, keep_model_type=True),
        convert_pre_ln(model, fold_affine=True),
        convert_pre_ln(model, "crms", fold_affine=True),
    ]


@torch.no_grad()
def logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).logits


def farthest(outputs: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in combinations(outputs, 2))


def training(run: Run) -> list[Row]:
    """One ViT learns the digits of scikit-learn twice, with LayerNorm and, with `train_recentered`, with RMSNorm.

    AdamW, same seeds, float64: in float32 rounding separates the two after some 60 steps, as it does any two runs that add up in
    another order.
    """
    (pictures, targets), _ = handwritten_digits()
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).double().div(255)[:, None]
    labels = torch.tensor(targets)
    torch.manual_seed(0)
    config = ViTConfig(**CONFIG | {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10})
    model = ViTForImageClassification(config).double()
    pair = [deepcopy(model), convert_pre_ln(model, train_recentered=True)]
    curves = [losses(one, images, labels, int(run.options["steps"])) for one in pair]
    differences = (curves[0] - curves[1]).abs()
    return [
        Row("loss after the last step, Pre-LN", curves[0][-1].item()),
        Row("loss after the last step, Pre-RMSNorm", curves[1][-1].item()),
        Row("largest difference of the losses of a step", differences.max().item(), "numerical noise"),
    ]


def losses(model: Any, images: torch.Tensor, labels: torch.Tensor, steps: int) -> torch.Tensor:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    generator, curve = torch.Generator().manual_seed(0), []
    for _ in tqdm(range(steps), desc=type(model).__name__):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = model(images[batch], labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve)


EXPERIMENTS = {
    "equivalence": Experiment("Outputs of the four forms of one ViT", equivalence, minutes=1),
    "training": Experiment(
        "Losses of the two forms, step by step",
        training,
        minutes=1,
        options={"steps": (200, "optimizer steps of 64 images")},
    ),
}
