"""`--option name=value`, as `run` and `reproduce` take it."""

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
