"""Where a classifier's logits come from: the linear layers at its end, and what goes into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

# Children of Transformers' classifiers and of ours that end in the layer whose outputs are the logits. Where a model has several of
# them, its logits are their mean.
HEADS = (
    "classifier",
    "classifiers",
    "cls_classifier",
    "distillation_classifier",
    "classification_head",
    "score",
    "head",
    "dist_head",
    "fc",
)


class LinearClassifier(nn.Module):
    """What takes the place of a last `nn.Linear` while something else than `weight` and `bias` decides about the logits.

    It is no `nn.Linear`, so that quantizers leave it alone, and LoRA, which would be added behind what decides.

    Args:
        linear: whose parameters it takes.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        return nn.functional.linear(features, self.weight, self.bias)


def find_classifiers(model: PreTrainedModel) -> list[str]:
    """The names of the linear layers that give the logits of `model`.

    Raises:
        ValueError: none of the children that `HEADS` names ends in a linear layer with an output per class.
    """
    found = []
    for name, child in model.named_children():
        if name in HEADS:
            parts = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
            found += [
                ".".join(filter(None, (name, index, last))) for index, part in parts for last in _last(part, model)
            ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear classifier with {model.config.num_labels} outputs in any of {', '.join(HEADS)}; "
            f"its parts are {', '.join(name for name, _ in model.named_children())}"
        )
    return found


def _last(head: nn.Module, model: PreTrainedModel) -> list[str]:
    names = [
        name
        for name, module in head.named_modules()
        if getattr(module, "out_features", None) == model.config.num_labels
        and getattr(module, "weight", None) is not None
    ]
    return names[-1:]


def classify_with_features(
    model: PreTrainedModel, names: list[str], inputs: Mapping[str, Any]
) -> tuple[ModelOutput, torch.Tensor]:
    """One forward pass of a classifier: its output, and the features (batch, width) from which its logits were computed.

    Args:
        names: of its last linear layers, from `find_classifiers`; the features of several are side by side.
        inputs: forward arguments, without labels.
    """
    features: list[torch.Tensor] = []

    def look(module: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        if arguments[0].ndim == 2:
            features.append(arguments[0])
            return None
        # every token is classified and the model picks one afterwards: let it pick the features along with the logits
        return torch.cat((output, arguments[0].to(output.dtype)), -1)

    handles = [model.get_submodule(name).register_forward_hook(look) for name in names]
    try:
        outputs = model(**inputs, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    if not features:
        classes = model.config.num_labels
        outputs["logits"], picked = outputs.logits[..., :classes], outputs.logits[..., classes:]
        features.append(picked)
    return outputs, torch.cat(features, -1)
