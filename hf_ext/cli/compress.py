"""`hf-ext compress MODEL --recipe llm_drop:attention=8 -o OUT`: a smaller or faster model, and what that did to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_ext.files import atomic_folder, write_text

from .convert import check_replaceable
from .output import show_table

MARK = "made by `hf-ext compress`"
COUNTS = ("parameters", "bytes on disk", "peak memory, bytes")


def command(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a repository on the Hub.")],
    recipe: Annotated[
        list[str], typer.Option(help="NAME or NAME:option=value,option=value; repeatable, done in this order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an earlier result is replaced.")],
    calibration: Annotated[Path | None, typer.Option(help="Data from which recipes choose what to change.")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="Data on which perplexity or accuracy is measured.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Items of the calibration that are used.")] = 64,
) -> None:
    """Compress a model, and measure it before and after.

    Data is a text file for a language model, a .csv or .jsonl with text and label for a text classifier, a folder of pictures by class
    or an .npz for an image classifier.
    """
    check_output(output)

    from hf_ext.measuring import effects, load, read_batches
    from hf_ext.surgery import compress

    before = load(source)
    batches = read_batches(calibration, before, limit=samples) if calibration else None
    evaluation = read_batches(evaluate, before) if evaluate else None
    smaller = compress(before.model, recipe, batches)
    with atomic_folder(output) as folder:
        smaller.save_pretrained(folder)
        if before.processor is not None:
            before.processor.save_pretrained(folder)
        after = load(folder)
        found = effects(before, after, evaluation, (source, folder))
        rows = [
            [
                effect.measure,
                *(number(effect.measure, value) for value in (effect.before, effect.after)),
                f"{effect.ratio:.3g}",
            ]
            for effect in found
        ]
        write_text(folder / "README.md", card(source, recipe, after, rows, output.name))
    show_table(("", "before", "after", "after / before"), rows)
    print(f"{type(smaller).__name__} -> {output}")


def number(measure: str, value: float) -> str:
    return f"{value:,.0f}" if measure in COUNTS else f"{value:.4g}"


def check_output(folder: Path) -> None:
    """Refuses to replace anything but an earlier result."""
    readme = folder / "README.md"
    if readme.is_file() and MARK in readme.read_text(encoding="utf-8"):
        return
    check_replaceable(folder)


def card(source: str, recipes: list[str], after: Any, rows: list[list[str]], name: str) -> str:
    """The README.md of the new folder."""
    from hf_ext.measuring import auto_class

    auto = auto_class(after.model.config).__name__
    command_line = " ".join(f"--recipe {recipe}" for recipe in recipes)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    front = ["---", "library_name: transformers", "tags:", "- hf_ext"]
    front += dict.fromkeys(f"- {recipe.partition(':')[0]}" for recipe in recipes)
    front += [f"pipeline_tag: {after.task}"] if after.task else []
    front += [f"base_model: {source}"] if not Path(source).exists() else []
    return f"""{chr(10).join([*front, "---"])}

# {name}

{Path(source).name}, {MARK} {command_line}.

```python
import hf_ext
from transformers import {auto}

model = {auto}.from_pretrained("{name}")
```

## Measured

| | before | after | after / before |
|---|---|---|---|
{table}
"""
