"""`hf-ext info SLUG`: everything the catalogue and the installed files say about one method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from hf_ext.catalog import Method, get_method

from .listing import summary


def command(
    slug: Annotated[str, typer.Argument(help="The method, as `hf-ext list` names it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a method is, what it brings, and what it cannot do."""
    facts = about(get_method(slug))
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:" if value else f"{name}: none")
            for key, entry in value.items():
                print(f"  {key}: {entry:,}" if isinstance(entry, int) else f"  {key}: {entry}")
        else:
            print(f"{name}: {value or '-'}")


def about(method: Method) -> dict[str, Any]:
    """The catalogue entry, and for a method that works what can be seen of it."""
    facts = summary(method)
    if method.arxiv:
        facts["arxiv"] = f"https://arxiv.org/abs/{method.arxiv}"
    if method.ready:
        facts["parameters"] = dict(preset_parameters(method))
    facts["checkpoint"] = str(method.checkpoint or "")
    facts["converter"] = find_spec(f"hf_ext.convert.{method.slug}") is not None
    facts["experiments"] = experiment_titles(method.slug)
    facts["benchmark"] = find_spec(f"hf_ext.benchmarks.{method.slug}") is not None
    return facts


def preset_parameters(method: Method) -> Iterator[tuple[str, int]]:
    """(preset, number of parameters), counted without allocating any, of the class that does the method's task, or of the base model
    where a preset leaves the task open."""
    import torch

    config_class = method.config_class()
    base, *heads = method.model_classes() or [None]
    for name in getattr(config_class, "PRESETS", {}):
        model = None
        for model_class in (*heads[:1], base):
            with torch.device("meta"), suppress(ValueError):
                model = model or model_class(config_class.from_preset(name))
        yield name, sum(parameter.numel() for parameter in model.parameters())


def experiment_titles(slug: str) -> dict[str, str]:
    """Name -> title and duration of the experiments that `hf-ext reproduce` offers for the method."""
    if find_spec(f"hf_ext.reproductions.{slug}") is None:
        return {}
    from hf_ext.reproductions import experiments

    return {name: f"{entry.title} ({entry.minutes:g} min)" for name, entry in experiments(slug).items()}
