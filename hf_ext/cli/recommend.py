"""`hf-ext recommend MODEL --goal latency`: which techniques help this very model, measured on it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import show_table
from .run import find_model

if TYPE_CHECKING:
    from hf_ext.techniques.recommendations import Recommendation

UNITS = {"time": ("ms", 1000.0), "saved MiB": ("", 1.0), "memory MiB": ("", 1.0)}


def command(
    source: Annotated[
        str, typer.Argument(metavar="SLUG|FOLDER|REPO", help="A method with a shipped checkpoint, or a model.")
    ],
    goal: Annotated[str, typer.Option(help="What is to shrink: latency, memory or size.")] = "latency",
    calibration: Annotated[Path | None, typer.Option(help="Data from which recipes choose what to change.")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="Data on which perplexity or accuracy is measured.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Items of the data that are used.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="Only this technique; repeatable.")] = None,
    slow: Annotated[bool, typer.Option("--slow", help="Also those that take minutes.")] = False,
    rounds: Annotated[int, typer.Option(min=2, help="Runs of either model, of which the median counts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try what needs no training on a model, and show what each technique does to it.

    Data is as in `hf-ext compress`. Nothing is written.
    """
    from hf_ext.measuring import load, read_batches
    from hf_ext.techniques.recommendations import GOALS, recommend

    if goal not in GOALS:
        raise typer.BadParameter(f"--goal {goal}: not one of {', '.join(GOALS)}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports the cast of every product
    folder = find_model(source)
    loaded = load(folder)
    data = {
        name: read_batches(path, loaded, limit=samples) if path else None
        for name, path in (("calibration", calibration), ("evaluation", evaluate))
    }
    found = recommend(folder, goal, only=only or (), slow=slow, rounds=rounds, loaded=loaded, **data)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    measured = [one for one in found if not one.reason]
    if measured:
        columns, rows = table(measured, goal)
        show_table(columns, rows)
    for one in found:
        if one.reason:
            print(f"not {one.id}: {one.reason}")
    best = next((one for one in measured if one.gain(goal) > 1.05), None)
    if best:
        print(
            f"for {goal}, the most there is: {best.id}, {best.gain(goal):.2f} times better: {best.how.replace('MODEL', source)}"
        )
    else:
        print(f"nothing that was measured makes it better for {goal}")


def table(measured: list[Recommendation], goal: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: before -> after for every measure, and how alike the results are."""
    names = [name for name in measured[0].after if name != "time"]
    columns = ["technique", f"better for {goal}", "time, ms", *names, "difference", "same decisions", "how"]
    rows = []
    for one in measured:
        pairs = [("time", 1000.0), *((name, 1.0) for name in names)]
        values = [f"{one.before[name] * factor:.4g} -> {one.after[name] * factor:.4g}" for name, factor in pairs]
        rows.append(
            [one.id, f"{one.gain(goal):.2f} x", *values, f"{one.difference:.2g}", f"{one.agreement:.1%}", one.how]
        )
    return columns, rows
