"""`hf-ext bench SLUG`: ours against what a user would pick instead, in alternating runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_ext.catalog import METHODS, get_method

from .output import show_table

if TYPE_CHECKING:
    from hf_ext.benchmarks import Result

COLUMNS = ("contest", "peer", "ours", "peer takes", "ratio", "ours MiB", "peer MiB", "device", "threads")


def command(
    slug: Annotated[str, typer.Argument(help="A method, `all`, or `import` for what `import hf_ext` costs.")],
    reference: Annotated[
        Path | None, typer.Option(help="A checkout of the authors' repository to run against.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Runs of each side.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    update_card: Annotated[bool, typer.Option("--update-card", help="Put the table into the method's card.")] = False,
) -> None:
    """Compare speed and memory with the peer. A ratio above 1 means that ours is faster."""
    if reference is not None and not reference.is_dir():
        raise typer.BadParameter(f"--reference {reference}: there is no such folder")
    results = {name: measure(name, reference, rounds) for name in chosen(slug)}
    if as_json:
        print(json.dumps({name: [result.as_dict() for result in found] for name, found in results.items()}, indent=2))
    else:
        show_table(COLUMNS, [cells(result) for found in results.values() for result in found])
    if "import" in results and not as_json:
        from hf_ext.benchmarks.imports import LIMIT

        print(f"with hf_ext, the import takes {1 / results['import'][0].ratio:.2f} times as long (allowed: {LIMIT})")
    if update_card:
        from hf_ext.cards import update_block

        for name, found in results.items():
            if name in METHODS and found:
                update_block(METHODS[name].card / "README.md", "benchmark", markdown(found))


def chosen(slug: str) -> list[str]:
    if slug == "all":
        return ["import", *(name for name in METHODS if find_spec(f"hf_ext.benchmarks.{name}"))]
    if slug != "import" and find_spec(f"hf_ext.benchmarks.{get_method(slug).slug}") is None:
        raise ValueError(f"'{slug}' has no benchmark yet")
    return [slug]


def measure(slug: str, reference: Path | None, rounds: int) -> list[Result]:
    from hf_ext.benchmarks import compare, contests

    results = []
    for contest in contests("imports" if slug == "import" else slug, reference):
        print(f"{slug}: {contest.name} against {contest.peer_name}", file=sys.stderr)
        results.append(compare(contest, rounds))
    if not results:
        print(f"{slug}: no peer is installed to compare with", file=sys.stderr)
    return results


def cells(result: Result) -> list[str]:
    return [
        result.name,
        result.peer,
        duration(result.ours_seconds, result.ours_spread),
        duration(result.peer_seconds, result.peer_spread),
        f"{result.ratio:.2f}",
        f"{result.ours_mib:.1f}",
        f"{result.peer_mib:.1f}",
        result.device,
        str(result.threads),
    ]


def duration(seconds: float, spread: float) -> str:
    return f"{seconds * 1000:.4g} ms ± {spread:.0%}"


def markdown(results: Sequence[Result]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
