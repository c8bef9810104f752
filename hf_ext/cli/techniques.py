"""`hf-ext techniques`: the surveys' taxonomies, and for each technique a program that runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hf_ext.catalog import METHODS

from .info import preset_parameters
from .output import show_table

if TYPE_CHECKING:
    from hf_ext.techniques import Entry


def command(
    name: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this technique's program.")] = None,
    survey: Annotated[str | None, typer.Option(help="Only this survey, such as survey_inference.")] = None,
    by: Annotated[str | None, typer.Option(help="Group by stage, hardware or application.")] = None,
    leaf: Annotated[str | None, typer.Option(help="Only this leaf, such as pruning/head.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, such as object-detection.")] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Run the program of ID, or all quick ones, and show what they measure.")
    ] = False,
    markdown: Annotated[
        str | None, typer.Option(help="Print a page of docs/: techniques.md or applications.md.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the techniques that three surveys sort, and what of them runs here."""
    from hf_ext.techniques import find, get_entry
    from hf_ext.techniques.pages import COLUMNS, PAGES, grouped, page, rows

    if markdown is not None:
        if markdown not in PAGES:
            raise typer.BadParameter(f"--markdown {markdown}: not one of {', '.join(PAGES)}")
        print(page(markdown), end="")
        return
    wishes = {"survey": survey, "leaf": leaf, "task": task}
    chosen = [get_entry(name)] if name else find(**{key: value for key, value in wishes.items() if value is not None})
    if not chosen:
        raise ValueError("No technique is all of that; `hf-ext techniques` shows all of them")
    if run:
        show_measurements(chosen, as_json)
    elif as_json:
        print(json.dumps([asdict(entry) | {"state": entry.state} for entry in chosen], indent=2, ensure_ascii=False))
    elif name:
        show_program(chosen[0])
    else:
        for value, group in grouped(chosen, by).items() if by else [("", chosen)]:
            if value:
                print(f"\n{by}: {value}")
            show_table(COLUMNS, rows(group))
        print(f"{len(chosen)} techniques, {sum(entry.state == 'runs' for entry in chosen)} run here")


def show_program(entry: Entry) -> None:
    facts = {
        "leaf": f"{entry.survey}: {entry.leaf}",
        "from": entry.target if entry.provider == "hf_ext" else f"{entry.provider}: {entry.target}",
        "state": entry.state,
        "stage": entry.stage,
        "hardware": entry.hardware,
        "application": entry.application,
        "task": entry.task,
        "checkpoints": ", ".join(entry.examples),
        "presets": presets(entry.target),
    }
    print(entry.title)
    for fact, value in facts.items():
        if value:
            print(f"  {fact}: {value}")
    if entry.snippet:
        print(f"\n{entry.code}\n\n# holds: {entry.check}")


def presets(target: str) -> str:
    """The published sizes of a method that is ready, with their numbers of parameters."""
    if target not in METHODS or not METHODS[target].ready:
        return ""
    return ", ".join(f"{name} ({count / 1e6:.3g}M)" for name, count in preset_parameters(METHODS[target]))


def show_measurements(chosen: list[Entry], as_json: bool) -> None:
    from tqdm.auto import tqdm

    runnable = [entry for entry in chosen if entry.state == "runs" and (entry.quick or len(chosen) == 1)]
    if not runnable:
        raise ValueError(f"{', '.join(entry.id for entry in chosen)}: {chosen[0].state}")
    found = {entry.id: entry.run() for entry in tqdm(runnable, desc="techniques", leave=False)}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    measures = ("milliseconds", "parameters", "saved MiB", "peak MiB", "operations")
    lines = []
    for id, numbers in found.items():
        pairs = [
            f"{numbers[f'before: {m}']:.4g} -> {numbers[f'after: {m}']:.4g}" if f"after: {m}" in numbers else "-"
            for m in measures
        ]
        lines.append(
            [
                id,
                f"{numbers['seconds']:.2f}",
                *pairs,
                f"{numbers['difference']:.2g}" if "difference" in numbers else "-",
            ]
        )
    show_table(("id", "seconds", *measures, "difference"), lines)
