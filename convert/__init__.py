"""Reference checkpoint -> our model, declaratively.

`convert/<slug>.py` holds

    config(arguments) -> the port's configuration, from the reference's constructor arguments
    RULES             Transformers' `WeightRenaming` / `WeightConverter` list
    IGNORE            (optional) fnmatch patterns of source tensors that carry nothing, such as index buffers
    UNWRAP            (optional) keys under which the authors' files keep the state dict, best first
    MODEL             the name of the model's class; where a slug has several heads, `model_class(arguments)` gives it
    complete(arguments, state_dict)  (optional) the arguments, with what only the weights tell
    build(arguments)  (optional) instead of `config` and `MODEL`, where the model is not one of the catalogue's classes

RULES and IGNORE may be functions of the arguments.

Files are read with safetensors or `torch.load(weights_only=True)` only: a checkpoint never runs code.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

from hf_ext.catalog import get_method

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class ConversionError(ValueError):
    """A checkpoint that does not fit; the message lists every tensor that is in the way."""


def convert_checkpoint(slug: str, state_dict: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]) -> nn.Module:
    """Builds the port of a reference model and gives it the reference's weights.

    Args:
        slug: method, as in `hf_ext.catalog.METHODS`.
        state_dict: the reference's tensors under the reference's names.
        arguments: the reference's constructor arguments.

    Returns:
        The model in eval mode, in the dtype of the tensors given.

    Raises:
        ConversionError: a source tensor is neither used nor listed in the converter's IGNORE, or one of ours is missing or of
            another shape. One error names them all.
    """
    converter = get_converter(slug)
    arguments = converter.complete(arguments, state_dict) if hasattr(converter, "complete") else dict(arguments)
    model = converter.build(arguments) if hasattr(converter, "build") else _build(slug, converter, arguments)
    rules, ignore = (
        value(arguments) if callable(value) else value for value in (converter.RULES, getattr(converter, "IGNORE", ()))
    )
    kept = {k: v for k, v in state_dict.items() if not any(fnmatchcase(k, pattern) for pattern in ignore)}
    load_exactly(model, apply_rules(kept, rules))
    return model.eval()


def get_converter(slug: str) -> ModuleType:
    get_method(slug)
    try:
        return import_module(f"hf_ext.convert.{slug}")
    except ModuleNotFoundError as error:
        if error.name != f"hf_ext.convert.{slug}":
            raise
        raise ValueError(
            f"'{slug}' has no converter: it brings no checkpoints of its own, or is not ready yet"
        ) from None


def _build(slug: str, converter: ModuleType, arguments: dict[str, Any]) -> nn.Module:
    name = converter.model_class(arguments) if hasattr(converter, "model_class") else converter.MODEL
    return get_method(slug).load(name)(converter.config(arguments))


def apply_rules(state_dict: Mapping[str, torch.Tensor], rules: Sequence[WeightTransform]) -> dict[str, torch.Tensor]:
    """Renames and rearranges tensors: every matching renaming in turn, then at most one converter per tensor."""
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    converted: dict[str, torch.Tensor] = {}
    pending: dict[str, WeightConverter] = {}
    for name, tensor in state_dict.items():
        target, pattern = rename_source_key(name, renamings, converters)
        if pattern is None:
            if target in converted:
                raise ConversionError(f"Two source tensors would become '{target}'; the second is '{name}'")
            converted[target] = tensor
        else:
            operation = pending.setdefault(target, deepcopy(by_pattern[pattern]))
            operation.add_tensor(target, name, pattern, lambda tensor=tensor: tensor)
    for target, operation in pending.items():
        for name, tensor in operation.convert(target).items():
            converted[name] = tensor[0] if isinstance(tensor, list) else tensor
    return converted


def load_exactly(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Gives `model` exactly these tensors; one `ConversionError` lists what is left over, missing or of another shape."""
    own = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    problems = [f"left over: {name} {tuple(state_dict[name].shape)}" for name in state_dict if name not in own]
    problems += [
        f"missing: {name} {tuple(own[name].shape)}" for name in own if name not in state_dict | dict.fromkeys(tied)
    ]
    problems += [
        f"shape: {name} is {tuple(state_dict[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state_dict and own[name].shape != state_dict[name].shape
    ]
    if problems:
        raise ConversionError(f"{len(problems)} tensors do not fit {type(model).__name__}:\n  " + "\n  ".join(problems))
    model.load_state_dict(dict(state_dict), strict=False)
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def read_checkpoint(path: str | Path, unwrap: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Reads a .safetensors, .pth, .pt, .ckpt or .bin file into a flat state dict, without running any code from it.

    A state dict nested under one of `unwrap` (best first) or a customary wrapper key is taken out, and a `module.` prefix
    (DataParallel) is removed.

    Raises:
        ConversionError: not a readable checkpoint, a file that needs code to unpickle, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"There is no checkpoint file '{path}'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise ConversionError(f"'{path}' is not a checkpoint: {str(error).splitlines()[0]}") from None
        raise ConversionError(
            f"'{path}' holds more than tensors (loading it would run code from the file), so it is refused. "
            "Save a plain state dict from the authors' code and convert that"
        ) from None
    except Exception as error:  # truncated archives and bad headers surface as many types
        reason = str(error) or type(error).__name__
        raise ConversionError(f"'{path}' cannot be read as a checkpoint: {reason.splitlines()[0]}") from None
    for key in (*unwrap, *WRAPPERS):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"'{path}' holds no state dict, but a {type(content).__name__}")
    if other := [name for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise ConversionError(f"'{path}' holds entries that are not tensors: {', '.join(map(str, other[:5]))}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
