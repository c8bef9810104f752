"""SSA on handwritten digits: does a model that trained on a quarter of its sources match one that saw them all, and does the
ensemble of its sub-networks match its dense inference?

A small vision transformer of Transformers reads each 8x8 image as 64 tokens of one pixel, after a class token.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_ext.data.digits import handwritten_digits
from hf_ext.training.ssa import SSACallback, ssa_ensemble, use_ssa

from . import Experiment, Row, Run

PASSES = 16
BATCH = 64
DATASET = "scikit-learn digits, 30% held out"
LOCAL = {"kind": "local2d", "window": (4, 4), "sigma": 1.0}
# name -> (folder, settings, share of the steps at the end that runs dense)
VARIANTS = {
    "dense": ("dense", None, 0.0),
    "unbiased, ratio 4": ("unbiased", {"ratio": 4}, 0.0),
    "unbiased, ratio 4, last tenth dense": ("unbiased-then-dense", {"ratio": 4}, 0.1),
    "local2d, 4x4 windows, sigma 1": ("local2d", LOCAL, 0.0),
}


def digits(run: Run) -> list[Row]:
    """Trains every variant with some seeds and compares dense inference with the ensemble."""
    from .training import TensorDataset, train

    training, test = (as_tensors(*part) for part in handwritten_digits(held_out_share=0.3))
    epochs, seeds = int(run.options["epochs"]), range(int(run.options["seeds"]))
    rows = []
    for name, (folder, settings, finetune_fraction) in VARIANTS.items():
        dense, ensemble = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            model = build()
            if settings is not None:
                use_ssa(model, **settings)
            train(
                Run(run.slug, run.folder / f"{folder}-{seed}", run.options),
                model,
                TensorDataset(**training),
                callbacks=[] if settings is None else [SSACallback(finetune_fraction)],
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-3,
                weight_decay=0.01,
                seed=seed,
            )
            dense.append(accuracy(model, test, passes=0))
            if settings is not None:
                ensemble.append(accuracy(model, test, passes=PASSES))
        rows.append(row(f"accuracy, {name}, dense inference", dense))
        if ensemble:
            rows.append(row(f"accuracy, {name}, ensemble of {PASSES} passes", ensemble))
    return rows


def build() -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=1,
            num_channels=1,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_labels=10,
        )
    )


def as_tensors(images: list, labels: list[int]) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in images])) / 255
    return {"pixel_values": pixels.unsqueeze(1) - 0.5, "labels": torch.tensor(labels)}


@torch.no_grad()
def accuracy(model: ViTForImageClassification, data: dict[str, torch.Tensor], passes: int) -> float:
    pixels = {"pixel_values": data["pixel_values"]}
    outputs = ssa_ensemble(model, pixels, passes, seed=0) if passes else model(**pixels)
    return (outputs.logits.argmax(-1) == data["labels"]).float().mean().item()


def row(metric: str, values: list[float]) -> Row:
    note = "seeds " + ", ".join(f"{value:.4f}" for value in values)
    return Row(metric, statistics.mean(values), dataset=DATASET, metric_type="accuracy", note=note)


EXPERIMENTS = {
    "digits": Experiment(
        "Trained on a quarter of the sources, on windows, and densely",
        digits,
        minutes=5,
        options={"epochs": (24, "passes over the 1258 training images"), "seeds": (2, "runs of each variant")},
    ),
}
