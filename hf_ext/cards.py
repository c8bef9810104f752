"""The measured part of a model card: tables that `hf-ext reproduce` and `hf-ext bench` write, and the Hub's model-index.

A table stands between `<!-- name -->` and `<!-- /name -->` under "## Measured"; everything else in a card is written by hand
and left alone. A card is replaced in one step, so an interruption leaves the last good one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_text

if TYPE_CHECKING:
    from .reproductions import Row

HEADING = "## Measured"


def update_block(path: str | Path, name: str, markdown: str) -> None:
    """Puts `markdown` into the block `name` of the card at `path`, making the block under "## Measured" where there is none."""
    write_text(path, replace_block(Path(path).read_text(encoding="utf-8"), name, markdown))


def replace_block(text: str, name: str, markdown: str) -> str:
    """`text` with the block `name` holding `markdown`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{start}\n{markdown.strip()}\n{end}"
    if start in text:
        before, rest = text.split(start, 1)
        if end not in rest:
            raise ValueError(f"The card opens the block '{start}' but never closes it with '{end}'")
        return before + block + rest.split(end, 1)[1]
    if (heading := re.search(rf"^{HEADING}$", text, re.MULTILINE)) is None:
        return f"{text.rstrip()}\n\n{HEADING}\n\n{block}\n"
    following = re.compile(r"^## ", re.MULTILINE).search(text, heading.end())
    place = following.start() if following else len(text)
    return f"{text[:place].rstrip()}\n\n{block}\n\n{text[place:]}".rstrip() + "\n"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: metric, paper, ours."""
    noted = any(row.note for row in rows)
    lines = ["| metric | paper | ours |" + (" note |" if noted else ""), "|---|---|---|" + ("---|" if noted else "")]
    lines += [
        f"| {row.metric} | {row.paper or '-'} | {number(row.ours)} |" + (f" {row.note} |" if noted else "")
        for row in rows
    ]
    return "\n".join(lines)


def number(value: float) -> str:
    """A measured number with four significant digits, whole numbers in full."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def record(card: str | Path, experiment: str, rows: Sequence[Row]) -> None:
    """Writes the table of an experiment into the card's README.md and those rows that name a data set and a metric into its model-index.

    Args:
        card: the folder of the card.
        experiment: its name; the block is `experiment: NAME`.
        rows: what was measured. A result with the same data set and metric is replaced, the others stay.
    """
    from huggingface_hub import EvalResult, ModelCard

    path = Path(card) / "README.md"
    if not path.is_file():
        raise ValueError(f"There is no card '{path}' to write the results into")
    readme = ModelCard(replace_block(path.read_text(encoding="utf-8"), f"experiment: {experiment}", table(rows)))
    measured = [
        EvalResult(
            task_type=readme.data.pipeline_tag or "other",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", row.dataset.lower()).strip("-"),
            dataset_name=row.dataset,
            metric_type=row.metric_type,
            metric_name=row.metric,
            metric_value=float(f"{row.ours:.6g}"),
        )
        for row in rows
        if row.dataset and row.metric_type
    ]
    if measured:
        replaced = {_key(result) for result in measured}
        kept = [result for result in readme.data.eval_results or [] if _key(result) not in replaced]
        readme.data.model_name = readme.data.model_name or Path(card).name
        readme.data.eval_results = kept + measured
    write_text(path, str(readme))


def _key(result) -> tuple[str, str, str | None]:
    return result.dataset_name, result.metric_type, result.metric_name
