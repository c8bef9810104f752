"""`hf-ext demo`: every shipped checkpoint at work on real data, through the ordinary Auto classes and pipelines.

A scene is a function that returns a `Shown`; `SCENES` lists them in order. Each number is measured while the user watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from hf_ext.catalog import METHODS
from hf_ext.files import write_text

from .page import Picture, page

SCENES = ("hat", "itransformer", "crossvit", "gla", "llm_drop", "pixart_delta")
WEIGHTS = "*.safetensors"

Track = Callable[..., Iterable]


@dataclass
class Shown:
    """One row of the table, and what the page shows for it.

    baseline, ours: the metric of the plain alternative and of the method, as text.
    """

    task: str
    metric: str
    baseline: str
    ours: str
    pictures: list[Picture] = field(default_factory=list)
    text: str = ""
    slug: str = ""
    seconds: float = 0.0


def is_trained(slug: str) -> bool:
    """Whether the method's card ships weights."""
    return any(METHODS[slug].card.rglob(WEIGHTS))


def play(slug: str, track: Track) -> Shown:
    """Runs one scene. `track(iterable, description)` draws a progress bar."""
    start = time.perf_counter()
    shown = import_module(f"hf_ext.demo.{slug}").show(METHODS[slug].card, track)
    shown.slug, shown.seconds = slug, time.perf_counter() - start
    return shown


def write_page(shown: Iterable[Shown], target: Path) -> None:
    """Writes the page, pictures included, as one HTML file."""
    write_text(target, page([(METHODS[scene.slug], scene) for scene in shown]))
