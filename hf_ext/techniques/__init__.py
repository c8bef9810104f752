"""The taxonomies of three surveys as data, each leaf of which leads to something that runs here.

    find(survey="survey_inference", leaf="pruning/head")     # entries
    entry.code                                               # a program: a small model made from a configuration, then the technique
    entry.run()                                              # runs it, checks what it claims, and measures

One module of this package for each survey holds its taxonomy `LEAVES`, its table `ENTRIES`, and in `SHARED` the entries of other tables
that its leaves lead to: survey_inference (arXiv 2307.07982), survey_faster_lighter (arXiv 2103.14636), survey_applications
(arXiv 2306.07303). `hf-ext techniques` shows them; docs/techniques.md and docs/applications.md are made from them. The texts of the
surveys were not at hand: the names of the leaves are this project's.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from textwrap import dedent
from typing import Any

from hf_ext.catalog import METHODS

from .models import MODELS

SURVEYS = {
    "survey_inference": "A Survey of Techniques for Optimizing Transformer Inference",
    "survey_faster_lighter": "A Practical Survey on Faster and Lighter Transformers",
    "survey_applications": "A Comprehensive Survey on Applications of Transformers for Deep Learning Tasks",
}
PROVIDERS = ("transformers", "torch", "peft", "diffusers", "accelerate", "bitsandbytes", "onnxruntime", "hf_ext")
STAGES = ("design", "training", "after training", "inference")  # when it is decided on
HARDWARE = ("any", "cpu", "gpu")
APPLICATIONS = ("any", "text", "vision", "text and vision", "audio", "time series", "signals")
TAGS = {"stage": STAGES, "hardware": HARDWARE, "application": APPLICATIONS}


@dataclass(frozen=True)
class Entry:
    """One runnable thing under one leaf of a survey.

    Attributes:
        id: unique over the three surveys.
        leaf: "category/leaf".
        title: what it is, with the methods that it stands for.
        provider: whose it is; one of `PROVIDERS`.
        target: import path, or the slug of an hf_ext method.
        model: the key in `MODELS` of what the snippet starts from, "" where it starts from nothing.
        snippet: a few lines. Where they make another model of the same inputs they call it `changed`, and it is compared with `model`.
        check: an expression that holds afterwards.
        stage, hardware, application: tags, values in `TAGS`.
        task: the pipeline task or the Hub's tag, for what is made for one; by default that of the method whose model it is.
        needs: packages that it takes beyond hf_ext's own.
        quick: runs in seconds; the others are left out of the test suite.
        examples: names of checkpoints on the Hub, for information; nothing downloads them.
        survey: whose table it is found in.
    """

    id: str
    leaf: str
    title: str
    provider: str
    target: str
    model: str = ""
    snippet: str = ""
    check: str = "True"
    stage: str = "after training"
    hardware: str = "any"
    application: str = "any"
    task: str = ""
    needs: tuple[str, ...] = ()
    quick: bool = True
    examples: tuple[str, ...] = ()
    survey: str = ""

    @property
    def category(self) -> str:
        return self.leaf.partition("/")[0]

    @property
    def state(self) -> str:
        """ "runs", "planned" (a method of hf_ext that is not ready), "see its card" (ready, without a program here), or what is missing."""
        if self.target in METHODS and not METHODS[self.target].ready:
            return "planned"
        if not self.snippet:
            return "see its card"
        if missing := [package for package in self.needs if find_spec(package) is None]:
            return f"needs {', '.join(missing)}"
        if self.hardware == "gpu" and not _has_gpu():
            return "needs a GPU"
        return "runs"

    @property
    def code(self) -> str:
        """The whole program."""
        parts = (MODELS[self.model] if self.model else "import torch", self.snippet)
        return "\n\n".join(dedent(part).strip() for part in parts if part)

    def run(self) -> dict[str, float]:
        """Runs the program in an empty folder and checks its claim.

        Returns:
            "seconds", and where it made a `changed` model what `measure.compare` says of the two. All numbers are finite.

        Raises:
            ValueError: it cannot run here; the state says why.
            AssertionError: what it claims does not hold.
        """
        if self.state != "runs":
            raise ValueError(f"'{self.id}' does not run here: {self.state}")
        from .measure import compare

        start = time.perf_counter()
        names: dict[str, Any] = {"__name__": "snippet"}
        with _empty_folder():
            exec(compile(self.code, f"<{self.id}>", "exec"), names)
            if not eval(self.check, names):
                raise AssertionError(f"'{self.id}' claims what does not hold: {self.check}")
            numbers = {"seconds": time.perf_counter() - start}
            if "changed" in names:
                numbers |= compare(names["model"], names["changed"], names["inputs"])
        if unbounded := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise AssertionError(f"'{self.id}' gives numbers that are not finite: {', '.join(unbounded)}")
        return numbers


@cache
def entries() -> tuple[Entry, ...]:
    """Every leaf's entries, survey by survey in the order of the taxonomy; what a survey shares with another stands under both."""
    own = {
        survey: {e.id: replace(e, survey=survey, task=e.task or _task(e)) for e in _module(survey).ENTRIES}
        for survey in SURVEYS
    }
    everything = {id: entry for table in own.values() for id, entry in table.items()}
    if len(everything) < sum(len(_module(survey).ENTRIES) for survey in SURVEYS):
        raise ValueError("ids of techniques are unique over the surveys")
    found = []
    for survey, table in own.items():
        shared = getattr(_module(survey), "SHARED", {})
        for leaf in leaves(survey):
            found += [entry for entry in table.values() if entry.leaf == leaf]
            found += [replace(everything[id], survey=survey, leaf=leaf) for id in shared.get(leaf, ())]
    return tuple(found)


def leaves(survey: str) -> list[str]:
    """The survey's taxonomy: "category/leaf" in order."""
    if survey not in SURVEYS:
        raise ValueError(f"survey '{survey}' is not one of {', '.join(SURVEYS)}")
    return [f"{category}/{leaf}" for category, names in _module(survey).LEAVES.items() for leaf in names]


def find(**wanted: str) -> list[Entry]:
    """The entries whose attributes are as wanted: survey, leaf, category, provider, target, task, state, or a tag of `TAGS`.

    "any" hardware or application fits every wish. Without a survey or leaf, what two surveys share is there once.

    Raises:
        ValueError: no such attribute, survey or tag.
    """
    known = ("survey", "category", "leaf", "provider", "target", "task", "state", *TAGS)
    allowed = {"survey": tuple(SURVEYS), "provider": PROVIDERS} | TAGS
    for name, value in wanted.items():
        if name not in known:
            raise ValueError(f"find() takes {', '.join(known)}, not '{name}'")
        if value not in allowed.get(name, (value,)):
            raise ValueError(f"{name} '{value}' is not one of {', '.join(allowed[name])}")
    found: dict[str, Entry] = {}
    for entry in entries():
        if all(_fits(entry, *wish) for wish in wanted.items()):
            found.setdefault(entry.id, entry)
    return list(found.values())


def get_entry(id: str) -> Entry:
    """The entry of that id; a `ValueError` that lists near ones otherwise."""
    known = {entry.id: entry for entry in reversed(entries())}
    if id in known:
        return known[id]
    near = get_close_matches(id, known, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `hf-ext techniques` shows all of them"
    raise ValueError(f"There is no technique '{id}'{hint}")


def coverage(survey: str) -> dict[str, str]:
    """Leaf -> who covers it with something that runs here: "built-in", "hf_ext", "both", or "none"."""
    covered = {}
    for leaf in leaves(survey):
        providers = {
            "hf_ext" if entry.provider == "hf_ext" else "built-in"
            for entry in find(survey=survey, leaf=leaf)
            if entry.state == "runs"
        }
        covered[leaf] = "both" if len(providers) == 2 else next(iter(providers), "none")
    return covered


def _task(entry: Entry) -> str:
    """That of the method, where the program makes a model of its own."""
    return METHODS[entry.target].task if entry.target in METHODS and not entry.model else ""


def _module(survey: str) -> Any:
    return import_module(f"{__name__}.{survey}")


def _fits(entry: Entry, name: str, value: str) -> bool:
    own = getattr(entry, name)
    return own == value or (name in ("hardware", "application") and own == "any")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@contextmanager
def _empty_folder() -> Iterator[None]:
    """Snippets write where they stand."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
