"""`hf-ext reproduce SLUG`: measures a claim of the paper again and writes it into the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_ext.catalog import get_method
from hf_ext.files import write_text

from .options import free_options, parse_options
from .output import show_table

RUNS = Path("runs")


CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    slug: Annotated[str, typer.Argument(help="The method, as `hf-ext list` names it.")],
    experiment: Annotated[str | None, typer.Option(help="Which one; the method's main experiment otherwise.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="name=value; repeatable. --name value does the same; `--list` shows the names."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming an interrupted run.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the experiments and their options.")] = False,
) -> None:
    """Measure again what the paper claims, resume an interrupted run, and put the numbers into the card."""
    method = get_method(slug)

    from hf_ext.reproductions import Run, experiments

    available = experiments(slug)
    if show:
        for name, entry in available.items():
            print(f"{name}: {entry.title} ({entry.minutes:g} min)")
            for key, (default, meaning) in entry.options.items():
                print(f"  --{key} {default}  {meaning}")
        return
    name = experiment or next(iter(available))
    if name not in available:
        raise typer.BadParameter(f"'{slug}' has no experiment '{name}'; it has {', '.join(available)}")
    options = choose_options(available[name].options, parse_options((option or []) + free_options(context.args)))
    folder = RUNS / slug / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    start(folder, options)
    rows = available[name].run(Run(slug=slug, folder=folder, options=options))

    from hf_ext.cards import number, record

    show_table(("metric", "paper", "ours", "note"), [(r.metric, r.paper or "-", number(r.ours), r.note) for r in rows])
    record(method.card, name, rows)
    print(f"written into {method.card / 'README.md'}")


def choose_options(known: dict[str, tuple[Any, str]], given: dict[str, Any]) -> dict[str, Any]:
    """The defaults with what was given on top, in the type of the default."""
    chosen = {name: default for name, (default, _) in known.items()}
    for name, value in given.items():
        if name not in known:
            raise typer.BadParameter(f"unknown option '{name}'; known: {', '.join(known) or 'none'}")
        kind = type(chosen[name])
        if chosen[name] is None or isinstance(value, kind):
            chosen[name] = value
        elif kind in (float, str, Path) and not isinstance(value, bool):
            chosen[name] = kind(value)
        else:
            raise typer.BadParameter(f"option '{name}' takes a value of type {kind.__name__}, not {value!r}")
    return chosen


def start(folder: Path, options: dict[str, Any]) -> None:
    """Notes the options in the run's folder; an interrupted run is only resumed with the same ones."""
    record = folder / "options.json"
    text = json.dumps(options, indent=2, default=str)
    if record.is_file() and record.read_text() != text:
        raise ValueError(f"'{folder}' was started with other options ({record}); resume with those or pass --fresh")
    write_text(record, text)
