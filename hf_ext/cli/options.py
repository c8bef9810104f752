"""`--option name=value`, as `run` and `reproduce` take it, and `--name value`, as `reproduce` also does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """`["steps=4", "name=x"]` -> `{"steps": 4, "name": "x"}`: values are read as JSON where they are JSON, otherwise as text."""
    parsed = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"--option takes name=value, not '{option}'")
        try:
            parsed[name] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name] = text
    return parsed


def free_options(arguments: Sequence[str]) -> list[str]:
    """`["--horizon", "96", "--data=x.csv"]`, what a command line holds besides what the command knows, as `name=value`."""
    options, rest = [], list(arguments)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (separator or rest):
            raise typer.BadParameter(f"expected --name value, got '{name}'")
        options.append(f"{name[2:]}={value if separator else rest.pop(0)}")
    return options
