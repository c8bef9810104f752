"""CBNetV2's assistant supervision: the head also learns from the maps of the assistants (section III-C of arXiv 2107.00420).

Works with every model of Transformers that takes its maps from an `AutoBackbone`: DETR and its relatives, Mask2Former, UperNet. The head's
weights are shared by all branches; inference uses the lead only and is unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.utils import ModelOutput

from hf_ext.models.cbnet import CompositeBackbone, CompositeBackboneOutput


def supervise_assistants(model: nn.Module, inputs: dict[str, Any]) -> ModelOutput:
    """The model's output on `inputs`, whose loss is the weighted sum over all branches (`branch_weights` of the configuration).

    The backbones run once; the head runs once for each of them.

    Args:
        model: a model with one `CompositeBackbone` inside, possibly wrapped for distributed training.
        inputs: its forward arguments, labels included.

    Returns:
        The lead's output; `loss` is the sum.

    Raises:
        ValueError: no composite backbone in the model or several, or no loss because labels are missing.
    """
    composite = find_composite(model)
    passes: list[CompositeBackboneOutput] = []
    handle = composite.register_forward_hook(lambda module, arguments, output: passes.append(output))
    try:
        outputs = model(**inputs)
    finally:
        handle.remove()
    if getattr(outputs, "loss", None) is None:
        raise ValueError("Assistant supervision needs a loss; `inputs` holds no labels")
    maps, count = passes[0].assistant_feature_maps, len(passes[0].feature_maps)
    *weights, lead_weight = composite.config.branch_weights
    loss = lead_weight * outputs.loss
    for index, weight in enumerate(weights):
        with composite.giving(maps[index * count : (index + 1) * count]):
            loss = loss + weight * model(**inputs).loss
    outputs.loss = loss
    return outputs


def find_composite(model: nn.Module) -> CompositeBackbone:
    """The one `CompositeBackbone` inside `model`."""
    found = [module for module in model.modules() if isinstance(module, CompositeBackbone)]
    if len(found) != 1:
        raise ValueError(f"Assistant supervision needs a model with one composite backbone, not {len(found)}")
    return found[0]


class AssistantSupervisionMixin:
    """For a `Trainer`: `class DetectorTrainer(AssistantSupervisionMixin, Trainer): pass`. Evaluation uses the lead only."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = supervise_assistants(model, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


__all__ = ["AssistantSupervisionMixin", "find_composite", "supervise_assistants"]
