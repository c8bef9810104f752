"""The survey on inference: every leaf of its taxonomy, run on small models, and what each technique changes."""

from __future__ import annotations

import statistics

from tqdm.auto import tqdm

from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.techniques import coverage, find

SURVEY = "survey_inference"


def leaves(run: Run) -> list[Row]:
    """Runs every quick program of the survey; where one makes a changed model, its size and error beside the untouched one's."""
    covered = coverage(SURVEY)
    entries = [entry for entry in find(survey=SURVEY) if entry.state == "runs" and entry.quick]
    found = {entry.id: entry.run() for entry in tqdm(entries, desc="programs")}
    rows = [
        Row("leaves", len(covered)),
        Row("leaves with something that runs", sum(who != "none" for who in covered.values())),
        Row("programs run", len(found)),
        Row("seconds for all of them", sum(numbers["seconds"] for numbers in found.values())),
        Row("seconds for the median one", statistics.median(numbers["seconds"] for numbers in found.values())),
    ]
    for entry in entries:
        numbers = found[entry.id]
        if "after: saved MiB" not in numbers:
            continue
        notes = [f"results differ by {numbers['difference']:.2g}"] if "difference" in numbers else []
        if entry.category != "quantization":  # products of other formats are not counted
            operations = numbers["after: operations"] / numbers["before: operations"]
            notes = [f"operations, after / before: {operations:.2f}", *notes]
        saved = numbers["after: saved MiB"] / numbers["before: saved MiB"]
        rows.append(Row(f"{entry.id}: saved size, after / before", saved, note="; ".join(notes)))
    return rows


EXPERIMENTS = {"leaves": Experiment("What each leaf's technique does to a small model", leaves, minutes=3)}
