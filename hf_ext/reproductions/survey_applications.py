"""The survey of applications: who covers its tasks, and how long each program takes."""

from __future__ import annotations

import statistics

from tqdm.auto import tqdm

from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.techniques import coverage, find, leaves

SURVEY = "survey_applications"


def covered(run: Run) -> list[Row]:
    """Runs every quick program; counts the leaves by who covers them, domain by domain too."""
    who = coverage(SURVEY)
    found = {
        entry.id: entry.run()
        for entry in tqdm([e for e in find(survey=SURVEY) if e.state == "runs" and e.quick], desc="programs")
    }
    rows = [Row("leaves", len(who))]
    rows += [
        Row(f"leaves covered by {kind}", list(who.values()).count(kind))
        for kind in ("built-in", "hf_ext", "both", "none")
    ]
    for domain in dict.fromkeys(leaf.partition("/")[0] for leaf in leaves(SURVEY)):
        entries = find(survey=SURVEY, category=domain)
        planned = sum(entry.state == "planned" for entry in entries)
        rows.append(Row(f"entries in {domain}", len(entries), note=f"{planned} of them planned"))
    seconds = [numbers["seconds"] for numbers in found.values()]
    return [*rows, Row("programs run", len(found)), Row("seconds for the median one", statistics.median(seconds))]


EXPERIMENTS = {"coverage": Experiment("Which tasks are covered, and by whom", covered, minutes=2)}
