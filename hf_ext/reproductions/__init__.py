"""Experiments that measure a claim of the paper, or train the small checkpoint that a card ships.

`reproductions/<slug>.py` holds `EXPERIMENTS: dict[str, Experiment]`; the first entry is what `hf-ext reproduce SLUG` runs.
An experiment gets a `Run` and returns `Row`s; what it prints beside the paper's numbers and what the card says are these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_ext.catalog import get_method


@dataclass(frozen=True)
class Row:
    """One measured number. `paper` is the paper's figure as text, "" where the paper has none.

    With `dataset` and `metric_type` (a Hub metric id such as "mse" or "accuracy") the row also enters the card's model-index.
    """

    metric: str
    ours: float
    paper: str = ""
    dataset: str = ""
    metric_type: str = ""
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """`run(Run) -> rows`; `options` are the names, defaults and meanings of what `--option name=value` may set."""

    title: str
    run: Callable[[Run], Sequence[Row]]
    minutes: float
    options: dict[str, tuple[Any, str]] = field(default_factory=dict)


@dataclass
class Run:
    """What an experiment is given: a folder that survives interruption (checkpoints of `Trainer` go there), the card's folder
    for small trained weights, and its options."""

    slug: str
    folder: Path
    options: dict[str, Any]

    @property
    def card(self) -> Path:
        return get_method(self.slug).card


class MissingData(FileNotFoundError):
    """The data that an experiment needs is not on this machine; the message says what to pass."""


def experiments(slug: str) -> dict[str, Experiment]:
    get_method(slug)
    try:
        return import_module(f"hf_ext.reproductions.{slug}").EXPERIMENTS
    except ModuleNotFoundError as error:
        if error.name != f"hf_ext.reproductions.{slug}":
            raise
        raise ValueError(f"'{slug}' has no experiment yet") from None
