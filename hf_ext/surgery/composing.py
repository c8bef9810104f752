"""Recipes one after the other, each choosing by a calibration what to change: `compress(model, ["llm_drop:attention=8", PreRMSNorm()])`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from . import RECIPES, Recipe, apply

FORMATS = ("bct",)  # recipes that change number formats, after which nothing can be rebuilt
OF_CONVERTERS = ("prenorm_reference",)  # recipes that nobody asks for by name

Batches = Sequence[Mapping[str, torch.Tensor]]


def compress(model: Any, recipes: Sequence[Recipe | str], calibration: Batches | None = None) -> Any:
    """The model after the recipes; the given one stays as it is.

    Args:
        model: a Transformers model.
        recipes: in order; each a `Recipe`, which says exactly what to change, or a text such as "llm_drop:attention=8" or
            "optin:flops=0.6": the recipe's `compress` function with these options chooses by the calibration.
        calibration: batches of forward arguments (`input_ids` and `attention_mask`, or `pixel_values`; `labels` where a recipe wants
            them).

    Raises:
        ValueError: an unknown recipe or option, a calibration that a recipe needs and does not get, or a recipe that does not fit.
    """
    if not recipes:
        raise ValueError(f"compress needs at least one recipe; there are {', '.join(names())}")
    training = model.training
    for position, recipe in enumerate(recipes):
        if isinstance(recipe, Recipe):
            model = apply(model, recipe)
            continue
        name, options = parse(recipe)
        if name in FORMATS and position < len(recipes) - 1:
            raise ValueError(
                f"'{name}' changes how numbers are stored, after which no layer can be rebuilt: name it last"
            )
        model = run(name, model, calibration, options)
    return model.train(training)


def run(name: str, model: Any, calibration: Batches | None, options: Mapping[str, Any]) -> Any:
    """One recipe by name: its module's `compress(model, calibration, **options)`, or, where it has none, the recipe with these fields."""
    module = import_module(f"hf_ext.surgery.{name}")
    work = getattr(module, "compress", None)
    try:
        if work is None:
            return apply(model, getattr(module, RECIPES[name])(**options))
        return work(model, calibration, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise ValueError(f"The recipe '{name}' does not take these options ({error})") from None
        raise


def names() -> list[str]:
    return sorted({*RECIPES, *FORMATS} - {*OF_CONVERTERS})


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """ "optin:flops=0.6,tokens=true" -> ("optin", {"flops": 0.6, "tokens": True}); values are JSON where they are JSON, otherwise text."""
    name, _, rest = text.partition(":")
    if name not in names() or find_spec(f"hf_ext.surgery.{name}") is None:
        raise ValueError(f"There is no recipe '{name}'; there are {', '.join(names())}")
    options = {}
    for part in filter(None, rest.split(",")):
        key, separator, value = part.partition("=")
        if not key or not separator:
            raise ValueError(f"A recipe is NAME:option=value,option=value, not '{text}'")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return name, options
