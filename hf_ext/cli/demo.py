"""`hf-ext demo`: runs every shipped checkpoint on real data and writes a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

HEADINGS = ("method", "task", "metric", "baseline", "ours", "seconds")


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the page.")] = Path("demo"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this method alone; may be repeated.")] = None,
) -> None:
    """Run the shipped checkpoints on real data; print a table and write demo/index.html."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from functools import partial

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import track
    from rich.table import Column, Table
    from transformers.utils import logging

    from hf_ext.demo import SCENES, is_trained, play, write_page

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if unknown := set(only or ()) - set(SCENES):
        raise ValueError(f"The demo has no scene {', '.join(sorted(unknown))}; it has {', '.join(SCENES)}")
    console = Console()
    if not console.is_terminal:  # a file has no width of its own
        console.width = 120
    shown = []
    for slug in only or SCENES:
        if is_trained(slug):
            shown.append(play(slug, partial(track, console=console, transient=True)))
            console.print(
                f"[bold]{slug}[/]: {shown[-1].metric} {shown[-1].ours} (baseline {shown[-1].baseline})", highlight=False
            )
    columns = [Column(name, overflow="fold", no_wrap=name in ("method", "seconds")) for name in HEADINGS]
    table = Table(*columns, box=SIMPLE_HEAD, title="Small checkpoints on real data")
    for scene in shown:
        table.add_row(scene.slug, scene.task, scene.metric, scene.baseline, scene.ours, f"{scene.seconds:.1f}")
    console.print(table)
    write_page(shown, output / "index.html")
    console.print(f"Pictures and plots: {output / 'index.html'}")
