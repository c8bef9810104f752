"""`hf-ext list`: the methods, filtered."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hf_ext.catalog import KINDS, METHODS, Method

from .output import show_table

STATUSES = ("ready", "planned")


def command(
    kind: Annotated[str | None, typer.Option(help=f"Only this kind: {', '.join(KINDS)}.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, such as image-classification.")] = None,
    status: Annotated[str | None, typer.Option(help="Only these: ready or planned.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods, and which of them work."""
    for option, value, allowed in (
        ("--kind", kind, KINDS),
        ("--task", task, sorted({method.task for method in METHODS.values()})),
        ("--status", status, STATUSES),
    ):
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{option} {value}: not one of {', '.join(allowed)}")
    chosen = [
        method
        for method in METHODS.values()
        if kind in (None, *method.kind.split("+")) and task in (None, method.task) and status in (None, method.status)
    ]
    if as_json:
        print(json.dumps([summary(method) for method in chosen], indent=2, ensure_ascii=False))
        return
    columns = ("slug", "kind", "task", "status", "title")
    show_table(columns, [[getattr(method, column) for column in columns] for method in chosen])
    print(f"{len(chosen)} methods, {sum(method.ready for method in chosen)} ready")


def summary(method: Method) -> dict[str, object]:
    """The facts of a catalogue entry, for JSON."""
    names = ("slug", "title", "arxiv", "kind", "task", "status", "reference", "licence", "classes", "cannot")
    return {name: getattr(method, name) for name in names}
