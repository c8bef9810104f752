"""OPTIN: one-shot pruning of attention heads and hidden channels ("neurons") of MLPs under a FLOP budget, without training.

    smaller = compress(model, batches, flops=0.6)           # rank, search and apply; or one by one:
    scores = rank(model, batches)
    smaller = apply(model, search(scores, flops=0.6))       # an `Optin` recipe, stored in config.json

Paper: The Need for Speed: Pruning Transformers with One Recipe, arXiv 2403.17921. Reference: Skhaki18/optin-transformer-pruning (MIT),
which has the language part. On purpose otherwise than there: what is pruned is gone, where the reference keeps masks; a unit is scored on
the layers above it alone, many at a time; the index prior and the leak of the reference are off (`Scoring.reference` turns them on); heads
that exceed the budget by themselves are no candidates; where layers differ in cost, units are ordered by score for each operation.
Merging of tokens follows the paper's description, which is all that there is of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from hf_ext.layers.compression import merge_tokens

from . import Recipe, apply
from .trajectory import Batches, Scores, Scoring, rank
from .units import branch_of, keep_heads, keep_neurons, prunable, special_tokens, units


@dataclass
class Optin(Recipe):
    """The heads and neurons that stay; all others leave, and the linear layers around them get smaller.

    Args:
        heads, neurons: for each layer the indices that stay, as a list or as a text such as "0-2,5"; texts are what is stored. An
            empty list for all layers together keeps everything. With grouped queries, a head is a key-value head and its queries. Where
            nothing stays of a branch, its output bias does. A branch that was dropped before stays dropped, whatever its entry says.
        merged: for each layer, how many tokens leave before it, each averaged with the one most like it; for ViT and DeiT, whose class
            and distillation tokens stay. The last hidden state is shorter then.

    Raises:
        ValueError: when the model is changed: another number of layers, indices that a layer has not, or a model that cannot be pruned.
    """

    name = "optin"
    heads: list[str] = field(default_factory=list)
    neurons: list[str] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)

    def __post_init__(self):
        for name in ("heads", "neurons"):
            entries = getattr(self, name)
            if isinstance(entries, str) or not all(isinstance(entry, (str, list, tuple)) for entry in entries):
                raise ValueError(
                    f"Optin.{name} takes one entry a layer, each indices or a text like '0-2,5', got {entries!r}"
                )
            setattr(self, name, [ranges(indices(entry)) for entry in entries])
        if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in self.merged):
            raise ValueError(f"Optin.merged takes a number of tokens for each layer, from 0, got {self.merged}")

    def rebuild(self, model: Any) -> None:
        family, layers = prunable(model)
        for name in ("heads", "neurons", "merged"):
            if (count := len(getattr(self, name))) not in (0, len(layers)):
                raise ValueError(f"Optin.{name} has {count} entries; {type(model).__name__} has {len(layers)} layers")
        work = []
        for kind, entries, narrow in (("heads", self.heads, keep_heads), ("neurons", self.neurons, keep_neurons)):
            branch = branch_of(family, kind)
            for number, (layer, entry) in enumerate(zip(layers, entries)):
                kept, count = indices(entry), units(layer, branch)
                if count and kept and kept[-1] >= count:
                    raise ValueError(f"Optin.{kind} keeps {entry} of layer {number}, which has {kind} 0 to {count - 1}")
                if count and len(kept) < count:
                    work.append((narrow, layer, branch, kept, count))
        protected = special_tokens(model) if any(self.merged) else 0
        for narrow, *arguments in work:
            narrow(*arguments)
        if protected:
            model.base_model.register_forward_pre_hook(_refuse_mask, with_kwargs=True)
        for layer, count, gone in zip(layers, self.merged, accumulate(self.merged)):
            if gone:
                layer.register_forward_pre_hook(MergeTokens(count, protected))

    def renumbered(self, kept: list[int]) -> Optin:
        heads, neurons = ([entries[layer] for layer in kept if entries] for entries in (self.heads, self.neurons))
        # tokens that would leave before a layer that is gone leave before the next one
        merged = [sum(self.merged[before + 1 : layer + 1]) for before, layer in pairwise([-1, *kept]) if self.merged]
        return Optin(heads, neurons, merged)


@dataclass
class MergeTokens:
    """A hook before a layer that averages `count` tokens with those most like them (ToMe); the first `protected` ones stay as they are.

    The mask that a layer gets while a model is exported hides nothing, and is for more tokens than there are: it goes.
    """

    count: int
    protected: int

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        merged, _ = merge_tokens(torch.cat((x[:, :1], x[:, self.protected :]), 1), self.count)
        return torch.cat((merged[:, :1], x[:, 1 : self.protected], merged[:, 1:]), 1), None


def _refuse_mask(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("attention_mask") is not None:
        raise ValueError(
            "This model merges tokens, so there is no `attention_mask` for them; crop what should not be seen"
        )


def indices(entry: str | Sequence[int]) -> list[int]:
    """ "0-2,5" -> [0, 1, 2, 5]; lists are sorted and checked."""
    if isinstance(entry, str):
        parts = [part.partition("-") for part in entry.split(",") if part.strip()]
        if not all(first.strip().isdigit() and (last.strip().isdigit() or not dash) for first, dash, last in parts):
            raise ValueError(f"Indices are written like '0-2,5', not {entry!r}")
        entry = [index for first, _, last in parts for index in range(int(first), int(last or first) + 1)]
    if any(not isinstance(index, int) or isinstance(index, bool) or index < 0 for index in entry):
        raise ValueError(f"Indices are integers from 0, got {list(entry)}")
    return sorted(set(entry))


def ranges(listed: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5" """
    runs: list[list[int]] = []
    for index in listed:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def search(scores: Scores, flops: float = 0.6, tokens: float = 0.0) -> Optin:
    """The recipe with the largest sum of importance within a budget (paper, section 3.2).

    For every number of heads, the best heads; what they leave of the budget goes to the best neurons.

    Args:
        scores: from `rank`.
        flops: share of the multiply-accumulates that may stay.
        tokens: share of what is saved that comes from merging tokens, the least important ones for what they cost; 0 for none.

    Raises:
        ValueError: shares outside 0 to 1, tokens that were not ranked, or a budget into which not even one head fits.
    """
    if not 0 < flops <= 1 or not 0 <= tokens <= 1:
        raise ValueError(
            f"flops={flops} is the share of operations to keep, above 0 and at most 1; tokens={tokens} is the share of what is saved that "
            "comes from tokens, from 0 to 1"
        )
    budget = flops * scores.macs * (1 + 1e-9)  # so that everything fits into a whole
    merged: list[int] = []
    if tokens:
        merged = _merged(scores, tokens * (1 - flops) * scores.macs)
        scores = scores.after_merging(merged)
    head_order, head_macs, head_gains = _ordered(scores.heads, scores.head_macs)
    neuron_order, neuron_macs, neuron_gains = _ordered(scores.neurons, scores.neuron_macs)
    remaining = budget - scores.fixed_macs - head_macs[1:]
    # how many neurons each number of heads leaves room for
    fitting = torch.searchsorted(neuron_macs, remaining, right=True) - 1
    gains = torch.where(remaining < 0, -math.inf, head_gains[1:] + neuron_gains[fitting.clamp_min(0)])
    if not len(gains) or gains.max() == -math.inf:
        raise ValueError(f"flops={flops} leaves no room for a single head; keep more")
    best = int(gains.argmax())
    return Optin(
        heads=_by_layer(head_order[: best + 1], len(scores.heads)),
        neurons=_by_layer(neuron_order[: int(fitting[best])], len(scores.neurons)),
        merged=merged,
    )


def _merged(scores: Scores, saving: float) -> list[int]:
    """How many tokens leave before each layer so that about so many operations are saved."""
    if not any(map(len, scores.tokens)):
        raise ValueError("Tokens were not ranked: call rank(..., tokens=True)")
    layers, count = len(scores.tokens), max(map(len, scores.tokens))
    # A token that leaves before a layer is saved in this one and in all that follow
    ranking = sorted(
        (-score / (layers - number), number, index)
        for number, row in enumerate(scores.tokens)
        for index, score in enumerate(row.tolist())
    )
    leaves: dict[int, int] = {}  # token -> layer
    merged = [0] * layers
    for _, number, index in ranking:
        if scores.macs - scores.after_merging(merged).macs >= saving:
            break
        if number < leaves.get(index, layers):
            trial = leaves | {index: number}
            numbers = [list(trial.values()).count(layer) for layer in range(layers)]
            if _can_merge(numbers, 1 + count):
                leaves, merged = trial, numbers
    return merged


def _can_merge(merged: Sequence[int], tokens: int) -> bool:
    """Whether so many of the tokens, with the class token, can leave before each layer: less than half at a time"""
    left = [tokens - gone for gone in accumulate(merged, initial=0)]
    return all(gone <= max(0, (before + 1) // 2 - 1) for gone, before in zip(merged, left))


def _ordered(scores: list[torch.Tensor], macs: list[float]) -> tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor]:
    """Units (layer, index), the best for their operations first; and the operations and the importance of the first 0, 1, 2, ..."""
    costs = torch.cat([torch.full_like(layer, cost) for layer, cost in zip(scores, macs)])
    flat = torch.cat(scores)
    places = [(number, index) for number, layer in enumerate(scores) for index in range(len(layer))]
    order = (flat / (costs / costs.max())).argsort(stable=True) if len(flat) else torch.arange(0)
    start = torch.zeros(1, dtype=torch.float64)
    return [places[i] for i in order], *(torch.cat((start, x[order].cumsum(0))) for x in (costs, -flat))


def _by_layer(places: list[tuple[int, int]], layers: int) -> list[list[int]]:
    kept: list[list[int]] = [[] for _ in range(layers)]
    for number, index in places:
        kept[number].append(index)
    return kept


def compress(
    model: Any,
    calibration: Batches | None,
    flops: float = 0.6,
    samples: int = 128,
    sequence_length: float | None = None,
    tokens: float = 0.0,
    **scoring: Any,
) -> Any:
    """The model within a share of its operations: `rank`, `search` and `apply`.

    Args:
        calibration: batches of forward arguments, in all about `samples`.
        flops: share of the multiply-accumulates of layers and patch embedding that may stay.
        samples, sequence_length: as for `rank`.
        tokens: share of what is saved that comes from merging tokens, in ViT and DeiT.
        scoring: fields of `Scoring`.

    Raises:
        ValueError: no calibration, or what `rank` and `search` refuse.
    """
    scores = rank(model, calibration or (), Scoring(**scoring), samples, sequence_length, tokens=tokens > 0)
    return apply(model, search(scores, flops, tokens))


__all__ = ["Optin", "Scores", "Scoring", "compress", "rank", "search"]
