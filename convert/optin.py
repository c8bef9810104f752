"""OPTIN checkpoints: a dense BERT, and the masks of heads and neurons that the authors' code saves beside it.

Arguments:
    config        fields of the model's configuration
    model_type    "bert" by default, or any family that can be pruned
    auto_class    the class that builds it, "AutoModelForSequenceClassification" by default
    head_mask     (layers, heads), 1 for what stays; all stay without it
    neuron_mask   (layers, neurons)
    prune         what the authors' YAML file says of the ranking; `scoring` reads it, the weights do not depend on it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ext.convert.operations import only_tensor
from hf_ext.surgery import apply, surgical_config
from hf_ext.surgery.optin import Optin, Scoring

ARGUMENTS = ("config", "model_type", "auto_class", "head_mask", "neuron_mask", "prune")
# the authors' names -> ours
SCORING = {
    "loss_type": "loss_type",
    "lambda_contribution": "lambda_contribution",
    "temp": "temperature",
    "aggregate": "aggregate",
    "head_include_fin_layer_mmd": "head_last_layer",
    "neuron_include_fin_layer_mmd": "neuron_last_layer",
    "head_fin_decay_val": "head_last_layer_decay",
    "neuron_fin_decay_val": "neuron_last_layer_decay",
    "head_metric_decay": "head_decay",
    "neuron_metric_decay": "neuron_decay",
    "head_index_prior": "head_index_prior",
    "neuron_index_prior": "neuron_index_prior",
    "leak_head_mask": "leak_head_mask",
}
SWITCHES = {"head_fin_decay_bool": "head_last_layer_decay", "neuron_fin_decay_bool": "neuron_last_layer_decay"}
OF_THE_SEARCH = ("mac_constraint", "batch_size", "seq_length")


def scoring(prune: dict[str, Any]) -> Scoring:
    """The authors' settings, with their code's own behaviour where nothing is said."""
    if unknown := set(prune) - {*SCORING, *SWITCHES, *OF_THE_SEARCH}:
        known = sorted({*SCORING, *SWITCHES, *OF_THE_SEARCH})
        raise ValueError(f"OPTIN's settings have no {sorted(unknown)}; they are {', '.join(known)}")
    fields = {SCORING[name]: value for name, value in prune.items() if name in SCORING}
    fields |= {field: 1.0 for name, field in SWITCHES.items() if not prune.get(name, True)}
    return Scoring.reference(**fields)


def kept(mask: Sequence[Sequence[float]] | torch.Tensor | None) -> list[list[int]]:
    """The indices that stay in each layer, of a mask (layers, units)"""
    return [[index for index, value in enumerate(row) if value] for row in mask] if mask is not None else []


def recipe(arguments: dict[str, Any]) -> Optin:
    return Optin(kept(arguments.get("head_mask")), kept(arguments.get("neuron_mask")))


def config(arguments: dict[str, Any]) -> Any:
    """The base model's configuration, with the recipe in `surgery` where there are masks."""
    if unknown := set(arguments) - {*ARGUMENTS}:
        raise ValueError(f"OPTIN's arguments have no {sorted(unknown)}; they are {', '.join(ARGUMENTS)}")
    model_type, fields = arguments.get("model_type", "bert"), arguments.get("config", {})
    pruning = recipe(arguments)
    if not pruning.heads and not pruning.neurons:
        return CONFIG_MAPPING[model_type](**fields)
    return surgical_config(model_type)(**fields, surgery=[pruning.to_dict()])


def build(arguments: dict[str, Any]) -> Any:
    auto_class = getattr(transformers, arguments.get("auto_class", "AutoModelForSequenceClassification"))
    return auto_class.from_config(config(arguments))


class Take(ConversionOps):
    """Of a flattened tensor the entries at `places`, in their shape"""

    def __init__(self, places: torch.Tensor):
        self.places = places

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).flatten()[self.places]}


def _numbered(arguments: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters of the dense and of the pruned model, where each entry of the dense one is its place in its tensor"""
    dense = build({name: value for name, value in arguments.items() if not name.endswith("_mask")}).double()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    return tuple(dict(model.named_parameters()) for model in (dense, apply(dense, recipe(arguments))))


def RULES(arguments: dict[str, Any]) -> list[WeightConverter]:
    """Of every tensor that is smaller in the pruned model, what stays"""
    if not arguments.get("head_mask") and not arguments.get("neuron_mask"):
        return []
    dense, pruned = _numbered(arguments)
    return [
        WeightConverter(f"^{re.escape(name)}$", name, [Take(places.detach().long())])
        for name, places in pruned.items()
        if places.shape != dense[name].shape
    ]


def IGNORE(arguments: dict[str, Any]) -> list[str]:
    """The tensors of layers that the pruned model has no longer"""
    if not arguments.get("head_mask") and not arguments.get("neuron_mask"):
        return []
    dense, pruned = _numbered(arguments)
    return [name for name in dense if name not in pruned]
