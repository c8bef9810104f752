"""SLAB: does a model that ends with batch normalization learn what LayerNorm learns, and what does folding it away give?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_ext.data.digits import handwritten_digits
from hf_ext.models.slab import SlabConfig, SlabForImageClassification
from hf_ext.surgery import apply
from hf_ext.training.slab import ProgressiveNormCallback, convert_norms, fuse_repbn

from . import Experiment, Row, Run
from .fusing import fusion_rows, settle_statistics

BATCH = 64


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization over all tokens of a batch, (B, N, C)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.flatten(0, 1)).view_as(hidden_states)


def vit(seed: int) -> nn.Module:
    """Transformers' ViT of four layers and width 64 for 8x8 images, in patches of 2x2."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
        )
    )
    return apply(
        model
    )  # changes nothing; `Trainer` cannot resume the plain class, which it saves under older names of its weights


def with_batch_norm(seed: int) -> nn.Module:
    model = vit(seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            model.set_submodule(name, TokenBatchNorm(module.normalized_shape[0]))
    return model


FORMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": vit,
    "PRepBN": lambda seed: convert_norms(vit(seed)),
    "BatchNorm": with_batch_norm,
}


def compare_norms(run: Run) -> list[Row]:
    """Test accuracy of the three, the mean over seeds, each with the same first weights and batches; and what folding leaves of PRepBN."""
    rows, means = [], {}
    for form, build in FORMS.items():
        scores = []
        for seed in range(int(run.options["seeds"])):
            model = trained(run, form, build(seed), seed)
            scores.append(100 * accuracy(model))
        means[form] = sum(scores) / len(scores)
        each = ", ".join(f"{score:.1f}" for score in scores)
        rows.append(Row(f"test accuracy (%), {form}", means[form], note=f"mean of {len(scores)} seeds: {each}"))
        if form == "PRepBN":
            folded = folding(model)
    rows.append(Row("PRepBN behind LayerNorm, points", means["LayerNorm"] - means["PRepBN"]))
    return rows + folded


def trained(run: Run, form: str, model: nn.Module, seed: int) -> nn.Module:
    from .training import TensorDataset, train

    images, labels = split("train")
    return train(
        Run(run.slug, run.folder / f"{form}-{seed}", run.options),
        model,
        TensorDataset(pixel_values=images, labels=labels),
        callbacks=[ProgressiveNormCallback(steps=0.8)] if form == "PRepBN" else [],
        num_train_epochs=float(run.options["epochs"]),
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=40,
        weight_decay=0.05,
        save_steps=100,
        seed=seed,
    )


def split(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (rows, 1, 8, 8), standardised, and labels (rows,)."""
    images, labels = dict(zip(("train", "test"), handwritten_digits()))[part]
    return (torch.from_numpy(np.stack(images))[:, None] / 255 - 0.3) / 0.38, torch.tensor(labels)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, labels = split("test")
    return (model(images).logits.argmax(-1) == labels).float().mean().item()


@torch.no_grad()
def folding(model: nn.Module) -> list[Row]:
    """How far the folded model's logits are from the model's own, and what they are worth."""
    images, _ = split("test")
    expected = model(images).logits
    distance = ((fuse_repbn(model)(images).logits - expected).abs().max() / expected.abs().max()).item()
    return [
        Row("PRepBN: largest difference of a logit, folded against plain, over the largest logit", distance),
        Row("test accuracy (%), PRepBN, last seed, folded", 100 * accuracy(model)),
    ]


def fuse(run: Run) -> list[Row]:
    """The published tiny networks with random weights and the norms that the schedule ends with, before and after folding.

    Their batch statistics are those of random images seen through RepBN. Seen through LayerNorm, as early in the schedule, they do
    not fit RepBN, activations grow from layer to layer, and rounding errors with them.
    """
    rows = []
    for preset in ("slab-swin-t", "slab-deit-t"):
        torch.manual_seed(0)
        model = SlabForImageClassification(SlabConfig.from_preset(preset, norm_type="repbn"))
        rows += fusion_rows(preset, settle_statistics(model, 224), 224)
    return rows


EXPERIMENTS = {
    "digits": Experiment(
        "LayerNorm, PRepBN and BatchNorm on handwritten digits",
        compare_norms,
        minutes=3,
        options={"epochs": (20, "epochs of each training"), "seeds": (3, "trainings of each kind")},
    ),
    "fuse": Experiment("Parameters, logits and time after folding", fuse, minutes=1),
}
