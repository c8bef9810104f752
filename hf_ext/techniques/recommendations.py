"""Which techniques help this very model: each candidate is applied to it, and what it does is measured.

    recommend("model_cards/llm_drop", goal="latency")      # the best first; `hf-ext recommend` prints the table

Candidates are entries of the surveys' tables that need no training: upstream's options, and hf_ext's recipes where there is a calibration
to choose by. One that does not fit says why, and nothing is recommended unmeasured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_ext.benchmarks import Contest, compare, peak_mib
from hf_ext.measuring import Batches, Loaded, auto_class, load, quality, sample_batch, work_of

from . import get_entry
from .measure import agreement, call, difference, saved_mib

GOALS = {"latency": "time", "memory": "memory MiB", "size": "saved MiB"}  # goal -> the measure that is to shrink

BLOCK_OF_4BIT = 64  # weights that share a scale in bitsandbytes


@dataclass(frozen=True)
class Subject:
    """The model that is asked about, its folder, and data to choose by."""

    loaded: Loaded
    folder: Path
    calibration: Batches | None

    @property
    def model(self) -> Any:
        return self.loaded.model


@dataclass(frozen=True)
class Recommendation:
    """What one technique did.

    Attributes:
        id: of the entry.
        how: what to type.
        after: measure -> value; `before` the same of the untouched model. "time" is seconds for the model's work (32 decoded tokens, or
            a batch), "memory MiB" weights and the peak of a call.
        difference, agreement: of the results on a batch: Euclidean, relative; and the share of equal decisions.
        reason: why it was not measured; "" where it was.
    """

    id: str
    how: str
    before: dict[str, float]
    after: dict[str, float]
    difference: float = math.nan
    agreement: float = math.nan
    reason: str = ""

    def gain(self, goal: str) -> float:
        """How many times better the model is at `goal`."""
        measure = GOALS[goal]
        return self.before[measure] / self.after[measure] if self.after else 0.0


@dataclass(frozen=True)
class Candidate:
    """An entry's id, how it is done to a subject, and what a person types for the same. A ValueError says that it does not fit."""

    id: str
    change: Callable[[Subject], Any]
    how: str
    slow: bool = False


def bfloat16(subject: Subject) -> Any:
    if subject.model.dtype == torch.bfloat16:
        raise ValueError("it is in bfloat16 already")
    return deepcopy(subject.model).to(torch.bfloat16)


def dynamic_int8(subject: Subject) -> Any:
    from torch.ao.quantization import quantize_dynamic

    if getattr(subject.model, "is_quantized", False):
        raise ValueError("it is quantized already")
    if not any(type(module) is nn.Linear for name, module in subject.model.named_modules() if "head" not in name):
        raise ValueError("it has no layers of torch's class Linear besides its head")
    return quantize_dynamic(subject.model, {nn.Linear}, dtype=torch.qint8)


def bitsandbytes(**options: Any) -> Callable[[Subject], Any]:
    def change(subject: Subject) -> Any:
        from transformers import BitsAndBytesConfig

        if getattr(subject.model, "is_quantized", False):
            raise ValueError("it is quantized already")
        widths = {module.in_features for module in subject.model.modules() if isinstance(module, nn.Linear)}
        if options.get("load_in_4bit") and any(width % BLOCK_OF_4BIT for width in widths):
            raise ValueError(f"4 bits take layers whose inputs are a multiple of {BLOCK_OF_4BIT} channels")
        auto = auto_class(subject.model.config)
        return auto.from_pretrained(subject.folder, quantization_config=BitsAndBytesConfig(**options)).eval()

    return change


def fused_attention(subject: Subject) -> Any:
    used = subject.model.config._attn_implementation
    if used != "eager":
        raise ValueError(f"its attention is '{used}' already")
    changed = deepcopy(subject.model)
    changed.set_attn_implementation("sdpa")
    return changed


def compiled(subject: Subject) -> Any:
    if subject.loaded.task == "text-generation":
        raise ValueError(
            "a cache that grows makes it compile again and again; use a static one, `hf-ext techniques static_cache`"
        )
    changed = deepcopy(subject.model)
    changed.forward = torch.compile(changed.forward)
    return changed


def recipe(text: str | Callable[[Any], str], chooses: bool = True) -> Callable[[Subject], Any]:
    """A recipe of hf_ext; `chooses` says that it takes a calibration."""

    def change(subject: Subject) -> Any:
        from hf_ext.surgery import compress

        if chooses and subject.calibration is None:
            raise ValueError("it chooses by data: give --calibration")
        return compress(subject.model, [text if isinstance(text, str) else text(subject.model)], subject.calibration)

    return change


def quarter_of_the_attentions(model: Any) -> str:
    from hf_ext.surgery.families import layers_of

    return f"llm_drop:attention={max(1, len(layers_of(model)) // 4)}"


CANDIDATES = (
    Candidate("bfloat16", bfloat16, "from_pretrained(..., dtype=torch.bfloat16)"),
    Candidate("dynamic_int8", dynamic_int8, "quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)"),
    Candidate("llm_int8", bitsandbytes(load_in_8bit=True), "BitsAndBytesConfig(load_in_8bit=True)"),
    Candidate(
        "nf4",
        bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")',
    ),
    Candidate("sdpa", fused_attention, 'model.set_attn_implementation("sdpa")'),
    Candidate("torch_compile", compiled, "model.forward = torch.compile(model.forward)", slow=True),
    Candidate("pre_rmsnorm", recipe("pre_rmsnorm", chooses=False), "hf-ext compress MODEL --recipe pre_rmsnorm"),
    Candidate("bct", recipe("bct", chooses=False), "hf-ext compress MODEL --recipe bct"),
    Candidate(
        "attention_dropping", recipe(quarter_of_the_attentions), "hf-ext compress MODEL --recipe llm_drop:attention=N"
    ),
    Candidate("optin", recipe("optin:flops=0.7"), "hf-ext compress MODEL --recipe optin:flops=0.7", slow=True),
    Candidate("layer_fusion", recipe("fusegpt"), "hf-ext compress MODEL --recipe fusegpt", slow=True),
)


def recommend(
    folder: str | Path,
    goal: str = "latency",
    calibration: Batches | None = None,
    evaluation: Batches | None = None,
    only: Sequence[str] = (),
    slow: bool = False,
    rounds: int = 5,
    loaded: Loaded | None = None,
) -> list[Recommendation]:
    """Tries every candidate on a model.

    Args:
        folder: of a model that `hf_ext.measuring.load` loads; `loaded` is what it gave, if at hand.
        goal: "latency", "memory" or "size".
        calibration: batches with labels that recipes choose by; those that need it are passed over without.
        evaluation: batches with labels; perplexity or accuracy is measured too.
        only: ids of the candidates to try, all when empty.
        slow: also those that take minutes.
        rounds: of alternating runs for the time.

    Returns:
        Those measured, best first, then those passed over with the reason.

    Raises:
        ValueError: an unknown goal or candidate, or a model whose work is unknown.
    """
    if goal not in GOALS:
        raise ValueError(f"goal '{goal}' is not one of {', '.join(GOALS)}")
    known = [candidate.id for candidate in CANDIDATES]
    if unknown := set(only) - set(known):
        raise ValueError(f"there is no candidate {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    loaded = loaded or load(folder)
    if not loaded.task:
        raise ValueError(
            f"recommend measures language models and classifiers of texts and images, not a {type(loaded.model).__name__}"
        )
    subject = Subject(loaded, Path(folder), calibration)
    batch = {name: x for name, x in (evaluation or [sample_batch(loaded)])[0].items() if name != "labels"}
    before = measures(loaded, batch, evaluation)
    chosen = [candidate for candidate in CANDIDATES if not only or candidate.id in only]
    found = []
    for candidate in tqdm(chosen, desc="recommend", leave=False):
        found.append(_try(candidate, subject, batch, evaluation, before, slow or candidate.id in only, rounds))
    return sorted(found, key=lambda one: one.gain(goal), reverse=True)


def measures(loaded: Loaded, batch: dict[str, torch.Tensor], evaluation: Batches | None) -> dict[str, float]:
    """All but the time, which is measured in turns."""
    saved = saved_mib(loaded.model)
    numbers = {"saved MiB": saved, "memory MiB": saved + peak_mib(lambda: call(loaded.model, batch))}
    return numbers | dict([quality(loaded, evaluation)] if evaluation else [])


def _try(candidate, subject, batch, evaluation, before, slow, rounds) -> Recommendation:
    def passed_over(reason: str) -> Recommendation:
        return Recommendation(candidate.id, candidate.how, before, {}, reason=reason)

    state = get_entry(candidate.id).state
    if state not in ("runs", "see its card"):
        return passed_over(state)
    if candidate.slow and not slow:
        return passed_over("it takes minutes: give --slow")
    try:
        changed = replace(subject.loaded, model=candidate.change(subject).eval())
        after = measures(changed, batch, evaluation)
        (theirs, *_), (ours, *_) = work_of(subject.loaded, batch), work_of(changed, batch)
        result = compare(Contest(candidate.id, ours, theirs, "before"), rounds=rounds, warmup=1)
        expected, found = call(subject.model, batch), call(changed.model, batch)
    except Exception as error:  # whatever a library says when a model does not suit it
        return passed_over(" ".join(str(error).split())[:300] or type(error).__name__)
    return Recommendation(
        candidate.id,
        candidate.how,
        before | {"time": result.peer_seconds},
        after | {"time": result.ours_seconds},
        difference(expected, found),
        agreement(expected, found),
    )
