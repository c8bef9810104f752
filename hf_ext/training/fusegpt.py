"""Training a model with fused blocks on its own task, after `hf_ext.surgery.fusegpt.fit` and before `fold`.

    fused = fit(model, batches, blocks=2)
    Trainer(fused, arguments, train_dataset=..., optimizers=(fusion_optimizer(fused), None)).train()
    smaller = fold(fused)

Paper: FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers, arXiv 2411.14507. Reference: JarvisPei/FuseGPT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_ext.surgery.families import layers_of
from hf_ext.surgery.fusegpt import FuseLinear, adam, group_parameters


def fusion_optimizer(model: Any, coef_lr: float = 1e-3, base_lr: float = 9.65e-6) -> torch.optim.Adam:
    """The optimizer of the method, for a `Trainer`; everything that it does not train is frozen, in place.

    Args:
        model: one with fused blocks.
        coef_lr: learning rate of the coefficients of fused weights.
        base_lr: of the low-rank updates, norms and biases of the blocks that others were fused into.

    Raises:
        ValueError: no block is fused into another.
    """
    fused = nn.ModuleList(
        layer for layer in layers_of(model) if any(isinstance(module, FuseLinear) for module in layer.modules())
    )
    if not fused:
        raise ValueError(
            f"{type(model).__name__} holds no fused blocks: there is nothing to train but the model itself"
        )
    groups = group_parameters(fused, coef_lr, base_lr)
    model.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_()
    return adam(groups)


__all__ = ["fusion_optimizer"]
