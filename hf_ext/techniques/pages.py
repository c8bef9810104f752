"""The tables as text: pages for docs/, made by `hf-ext techniques --markdown`, and the rows that the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import dedent

from hf_ext.catalog import METHODS

from . import SURVEYS, TAGS, Entry, coverage, find, leaves
from .models import MODELS

COLUMNS = ("id", "leaf", "state", "from", "title")
PAGES = {  # page of docs/ -> surveys, title
    "techniques.md": (("survey_inference", "survey_faster_lighter"), "Techniques"),
    "applications.md": (("survey_applications",), "Applications"),
}


def rows(entries: Iterable[Entry]) -> list[list[str]]:
    """What `COLUMNS` name, of each entry."""
    return [[entry.id, entry.leaf, entry.state, source(entry), entry.title] for entry in entries]


def grouped(entries: Iterable[Entry], by: str) -> dict[str, list[Entry]]:
    """The entries under each value of a tag."""
    if by not in TAGS:
        raise ValueError(f"entries are grouped by {', '.join(TAGS)}, not by '{by}'")
    entries = list(entries)
    groups = {value: [entry for entry in entries if getattr(entry, by) == value] for value in TAGS[by]}
    return {value: found for value, found in groups.items() if found}


def source(entry: Entry) -> str:
    """Whose it is: the method's slug for those of hf_ext that have one."""
    return f"hf_ext: {entry.target}" if entry.target in METHODS else entry.provider


def status(entry: Entry) -> str:
    """The state, as it is on any machine: what is only missing here does not matter."""
    if entry.state in ("planned", "see its card"):
        return entry.state
    wants = [*entry.needs, *(["a GPU"] if entry.hardware == "gpu" else [])]
    return f"needs {', '.join(wants)}" if wants else "runs"


def page(name: str) -> str:
    """The text of `docs/NAME`."""
    surveys, title = PAGES[name]
    lines = [
        f"# {title}",
        "",
        f"Made by `hf-ext techniques --markdown {name}`; a test fails when it is out of date. What runs is run by the tests, on models",
        "made from configurations, with random weights; put your own in their place with `from_pretrained`. Planned methods do not",
        "work yet.",
        "",
    ]
    used: list[str] = []
    body: list[str] = []
    shown: set[str] = set()
    for survey in surveys:
        body += ["", f"## {SURVEYS[survey]}", "", f"arXiv {METHODS[survey].arxiv}; {len(leaves(survey))} leaves."]
        category = ""
        for leaf in leaves(survey):
            if leaf.partition("/")[0] != category:
                category = leaf.partition("/")[0]
                body += ["", f"### {words(category)}"]
            body += [
                "",
                f"#### {words(leaf.partition('/')[2])}",
                "",
                "| id | what | from | state |",
                "|---|---|---|---|",
            ]
            entries = find(survey=survey, leaf=leaf)
            body += [f"| `{e.id}` | {e.title} | {source(e)} | {status(e)} |" for e in entries]
            for entry in entries:
                if entry.snippet and entry.id not in shown:
                    shown.add(entry.id)
                    used += [entry.model] if entry.model and entry.model not in used else []
                    body += ["", *snippet(entry)]
    for model in used:
        lines += [f"`{model}` in the snippets is", "", "```python", dedent(MODELS[model]).strip(), "```", ""]
    return "\n".join([*lines, *body]).replace("\n\n\n", "\n\n").rstrip() + "\n"


def snippet(entry: Entry) -> list[str]:
    start = f" (after `{entry.model}`)" if entry.model else ""
    checkpoints = f"; checkpoints: {', '.join(entry.examples)}" if entry.examples else ""
    return [f"`{entry.id}`{start}{checkpoints}", "", "```python", dedent(entry.snippet).strip(), "```"]


def words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def coverage_table() -> str:
    """How many leaves of each survey have something that runs, and whose, as Markdown."""
    lines = ["| survey | leaves | built-in only | hf_ext only | both | none |", "|---|---|---|---|---|---|"]
    for survey in SURVEYS:
        who = list(coverage(survey).values())
        counts = [str(who.count(kind)) for kind in ("built-in", "hf_ext", "both", "none")]
        lines.append(f"| {survey} | {len(who)} | {' | '.join(counts)} |")
    return "\n".join(lines)
