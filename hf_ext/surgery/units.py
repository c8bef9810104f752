"""Heads and hidden channels ("neurons") of a model's layers: how many there are, and layers that keep some of them.

Layers may be of unequal width, and may have lost a branch to another recipe.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hf_ext.layers.narrowing import LINEAR, Constant, channels_of, keep_channels, keep_inputs, keep_outputs, widths

from .families import Branch, Family, family_of, layers_of

SPECIAL_TOKENS = {"vit": 1, "deit": 2}  # in front of those of the image, where tokens can be merged
# attributes of an attention that go with its heads
COUNTS = ("num_attention_heads", "num_heads", "all_head_size", "split_size")


def branch_of(family: Family, kind: str) -> Branch:
    return family.attention if kind == "heads" else family.mlp


def part(layer: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path; None where it, or what held it, was dropped."""
    module: nn.Module | None = layer
    for name in path.split(".") if path else ():
        module = None if module is None else getattr(module, name)
    return module if path else None


def is_gone(layer: nn.Module, branch: Branch) -> bool:
    """Whether a branch was dropped or emptied."""
    output = part(layer, branch.output)
    return output is None or isinstance(output, Constant)


def units(layer: nn.Module, branch: Branch) -> int:
    """How many heads or neurons a branch has."""
    if is_gone(layer, branch):
        return 0
    inputs = widths(layer.get_submodule(branch.output))[0]
    core = layer.get_submodule(_core(branch))
    size = getattr(core, "head_dim", None) or getattr(core, "attention_head_size", None)
    if size is None:
        return inputs
    return (widths(layer.get_submodule(branch.inputs[1]))[1] if len(branch.inputs) > 1 else inputs) // size


def _core(branch: Branch) -> str:
    """The module that holds the inputs of a branch, seen from the layer; for an attention, the one that attends."""
    return branch.inputs[0].rpartition(".")[0]


def special_tokens(model: Any) -> int:
    """How many tokens in front are not of the image; a ValueError for models whose tokens cannot be merged."""
    name = model.config.model_type.removeprefix("surgical_")
    if name not in SPECIAL_TOKENS:
        raise ValueError(f"Tokens are merged in {' and '.join(SPECIAL_TOKENS)}; '{name}' needs all of them")
    return SPECIAL_TOKENS[name]


def prunable(model: Any) -> tuple[Family, list[nn.Module]]:
    """The family and the layers of a model that can be pruned.

    Raises:
        ValueError: another family, adapters, quantized weights, cross-attention, or parts that another recipe has put in the way.
    """
    family, name = family_of(model), model.config.model_type.removeprefix("surgical_")
    try:
        layers = layers_of(model)
    except AttributeError:
        raise ValueError(f"OPTIN prunes '{name}' where its backbone is a Swin; this one is another") from None
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model carries adapters: `merge_and_unload()` them before pruning, and adapt what is left")
    if getattr(model.config, "add_cross_attention", False):
        raise ValueError(
            "OPTIN prunes self-attentions and MLPs; this model has cross-attention (add_cross_attention=True)"
        )
    if not getattr(model.config, "do_layer_norm_before", True):
        raise ValueError(f"OPTIN is for '{name}' with norms before the branches, not with do_layer_norm_before=False")
    for number, layer in enumerate(layers):
        for branch in (family.attention, family.mlp):
            _check_linears(number, layer, branch)
    return family, layers


def _check_linears(number: int, layer: nn.Module, branch: Branch) -> None:
    try:
        if is_gone(layer, branch):
            return
        linears = {name: part(layer, name) for name in (*branch.inputs, branch.output)}
    except AttributeError:
        linears = {branch.output: None}
    for name, linear in linears.items():
        if not isinstance(linear, LINEAR) or not linear.weight.is_floating_point():
            found = "missing" if linear is None else f"a {type(linear).__name__}"
            raise ValueError(
                f"OPTIN takes channels out of plain linear layers, but '{name}' of layer {number} is {found}. "
                "Prune first, then quantize or replace what is left"
            )


def keep_heads(layer: nn.Module, branch: Branch, kept: list[int], count: int) -> None:
    """Leaves the heads in `kept` of the `count` of an attention, in place; its output bias where none stays."""
    path = _core(branch)
    core = layer.get_submodule(path)
    if not kept:
        output = branch.output.removeprefix(f"{path}.") if branch.output.startswith(f"{path}.") else None
        for name, _ in list(core.named_children()):
            if name != output:
                setattr(core, name, None)
        _empty(layer, branch)
        core.__class__ = _without_heads(type(core), output)
        return
    stacked = 3 if len(branch.inputs) == 1 else 1
    for name in branch.inputs:
        linear = layer.get_submodule(name)
        keep_outputs(linear, channels_of(kept, count, widths(linear)[1], stacked))
    output = layer.get_submodule(branch.output)
    keep_inputs(output, channels_of(kept, count, widths(output)[0]))
    for name in branch.per_unit:
        keep_channels(layer.get_submodule(name), kept)
    for name in COUNTS:
        if hasattr(core, name):
            setattr(core, name, getattr(core, name) * len(kept) // count)


def keep_neurons(layer: nn.Module, branch: Branch, kept: list[int], count: int) -> None:
    """Leaves the neurons in `kept` of the `count` of an MLP, in place; its output bias where none stays."""
    if not kept:
        for name in (*branch.inputs, *branch.per_unit):
            layer.set_submodule(name, nn.Identity())
        _empty(layer, branch)
        return
    for name in branch.inputs:
        keep_outputs(layer.get_submodule(name), kept)
    keep_inputs(layer.get_submodule(branch.output), kept)
    for name in branch.per_unit:
        keep_channels(layer.get_submodule(name), kept)


def _empty(layer: nn.Module, branch: Branch) -> None:
    """Leaves the bias of a branch. The norm before it would work for nothing."""
    layer.set_submodule(branch.output, Constant(layer.get_submodule(branch.output)))
    if branch.norm_in:
        layer.set_submodule(branch.norm_in, nn.Identity())


@cache
def _without_heads(attention_class: type, output: str | None) -> type:
    """The attention class (it keeps its name, which output recording goes by) with a forward for no heads at all.

    In a decoder it counts positions with a cache entry of one channel, because the first layer's entry says how long the cache is.
    """

    def forward(self, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            entry = hidden_states.new_zeros(*hidden_states.shape[:2], 1).unsqueeze(1)
            past_key_values.update(entry, entry, self.layer_idx)
        return (hidden_states if output is None else getattr(self, output)(hidden_states)), None

    body = {"forward": forward, "__module__": __name__, "__qualname__": attention_class.__qualname__}
    return type(attention_class)(attention_class.__name__, (attention_class,), body)
