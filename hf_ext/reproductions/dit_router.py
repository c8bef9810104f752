"""DiT with dynamic token routing: a small network learns to spend its budget on what matters, and time follows what is selected.

The paper's networks were not published; neither number here is the paper's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from hf_ext.benchmarks import Contest, compare
from hf_ext.data.digits import handwritten_digits
from hf_ext.models.dit_router import (
    DynamicTokenRoutingConfig,
    DynamicTokenRoutingForImageClassification,
    DynamicTokenRoutingImageClassifierOutput,
)
from hf_ext.models.dit_router.configuration_dit_router import ROUTINGS
from hf_ext.models.dit_router.modeling_dit_router import DynamicTokenRoutingLogit

from . import Experiment, Row, Run

CANVAS, DIGIT = 64, 32


def on_blank_canvases(digits: list, seed: int) -> torch.Tensor:
    """(N, 1, 64, 64) in [0, 1]: each digit enlarged to 32x32, at one of nine places of an empty canvas."""
    places = np.random.default_rng(seed).integers(0, 3, size=(len(digits), 2)) * (CANVAS - DIGIT) // 2
    canvases = torch.zeros(len(digits), 1, CANVAS, CANVAS)
    for canvas, digit, (top, left) in zip(canvases, digits, places):
        enlarged = np.asarray(digit.resize((DIGIT, DIGIT)), dtype=np.float32) / 255
        canvas[0, top : top + DIGIT, left : left + DIGIT] = torch.from_numpy(enlarged)
    return canvases


def train_to_budget(run: Run) -> list[Row]:
    """Trains the static path, then the gates with it, and measures, on digits not trained on, the cost and who was selected."""
    from .training import TensorDataset, train

    torch.manual_seed(0)
    (images, labels), (held_out_images, held_out_labels) = handwritten_digits()
    budget = float(run.options["budget"])
    config = DynamicTokenRoutingConfig(
        num_channels=1,
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[4, 4, 4, 4],
        depths=[1, 1, 1, 1],
        num_labels=10,
        budget=budget,
        router_loss_coef=10.0,
    )
    dataset = TensorDataset(pixel_values=on_blank_canvases(images, seed=0), labels=torch.tensor(labels))
    model = DynamicTokenRoutingForImageClassification(config)
    for routing in ROUTINGS[::-1]:
        model.config.routing = routing
        train(
            replace(run, folder=run.folder / routing),
            model,
            dataset,
            num_train_epochs=int(run.options[f"{routing}_epochs"]),
            save_steps=100,
            per_device_train_batch_size=64,
            learning_rate=2e-3 if routing == "static" else 5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.05,
        )
    canvases = on_blank_canvases(held_out_images, seed=1)
    with torch.inference_mode():
        output = model(canvases)
    accuracy = (output.logits.argmax(-1) == torch.tensor(held_out_labels)).float().mean().item()
    on_digit, elsewhere = selected_shares(output, canvases)
    name = "scikit-learn digits on blank canvases"
    return [
        Row(f"cost ratio on digits not trained on (budget {budget:g})", output.cost_ratio.item()),
        Row("share of tokens on the digit that enter the first stage", on_digit),
        Row("share of other tokens that enter the first stage", elsewhere),
        Row("accuracy on digits not trained on", accuracy, dataset=name, metric_type="accuracy"),
        Row("parameters", model.num_parameters()),
    ]


def selected_shares(output: DynamicTokenRoutingImageClassifierOutput, canvases: torch.Tensor) -> tuple[float, float]:
    """At the first stage: how many of the tokens with ink under them are selected, and how many of the others."""
    selected = output.gates[0]
    on_digit = nn.functional.adaptive_max_pool2d((canvases > 0.1).float(), selected.shape[1:]).squeeze(1).bool()
    return selected[on_digit].mean().item(), selected[~on_digit].mean().item()


def select_share(model: DynamicTokenRoutingForImageClassification, images: torch.Tensor, share: float) -> None:
    """Moves the biases of the gates so that each selects that share of the tokens of `images`."""

    def shift(logit: DynamicTokenRoutingLogit, _: tuple, output: torch.Tensor) -> torch.Tensor:
        cut = output.flatten().sort(descending=True).values[: max(int(share * output.numel()), 1)][-1]
        change = 1e-3 - cut if share else -output.max() - 1
        logit.bias += change
        return output + change

    logits = [module for module in model.modules() if isinstance(module, DynamicTokenRoutingLogit)]
    with torch.no_grad():
        for logit in logits:
            logit.weight.normal_(0, 1)  # far enough apart for a shift to tell them from one another
        handles = [logit.register_forward_hook(shift) for logit in logits]
        model(images)
    for handle in handles:
        handle.remove()


def measure_speed(run: Run) -> list[Row]:
    """The time of a forward pass of the B1 preset as a function of the share of tokens that every gate selects."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)

    def build(share: float) -> DynamicTokenRoutingForImageClassification:
        torch.manual_seed(0)
        model = DynamicTokenRoutingForImageClassification(DynamicTokenRoutingConfig.from_preset("dit-router-b1")).eval()
        select_share(model, images, share)
        return model

    def forward(model: nn.Module) -> partial:
        return partial(torch.inference_mode()(model), images)

    whole, rows = build(1.0), []
    for share in (0.75, 0.5, 0.25, 0.1, 0.0):
        model = build(share)
        with torch.inference_mode():
            spent = model(images).cost_ratio.item()
        result = compare(Contest("share", forward(model), forward(whole), "all tokens", threads=1))
        rows.append(
            Row(
                f"time over that of all tokens, {share:.0%} selected by every gate",
                1 / result.ratio,
                note=f"cost ratio {spent:.2f}",
            )
        )
    return rows


EXPERIMENTS = {
    "budget": Experiment(
        "A small network learns to recognise digits on mostly blank images within a budget below the cost of PVTv2's path",
        train_to_budget,
        minutes=3,
        options={
            "static_epochs": (24, "passes over 1438 images with the path of PVTv2"),
            "dynamic_epochs": (8, "passes with the gates"),
            "budget": (0.15, "share of the cost of the gated edges; the path of PVTv2 spends 0.27"),
        },
    ),
    "speed": Experiment("Time against the share of tokens selected, one thread, 224x224", measure_speed, minutes=1),
}
