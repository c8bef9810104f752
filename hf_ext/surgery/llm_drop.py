"""LLM-Drop: delete the attention modules, MLPs or blocks whose output is most similar to their input.

Paper: What Matters in Transformers? Not All Attention is Needed, arXiv 2406.15786. Reference: CASE-Lab-UMD/LLM-Drop.
On purpose otherwise than there: one streaming pass measures everything at once and keeps no hidden states; padded tokens do not count;
Gemma2's MLP is measured around its own input norm; consecutive blocks are scored over the gap that is dropped (`reference_gap` restores
the reference's gap, one layer longer).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import nn

from . import Recipe, apply
from .families import Branch, Family, assign_cache_entries, family_of, layers_of

Target = Literal["attention", "mlp", "joint", "block", "block_consecutive"]


@dataclass
class LlmDrop(Recipe):
    """Drops branches, each with its norm and residual.

    Args:
        attention, mlp: indices of the layers that lose this branch. A dropped block loses both. Layers keep their place and number,
            so hidden states and parameter names stay; the kept attentions get consecutive cache entries.
    """

    name = "llm_drop"
    needs_weights = False
    attention: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)

    def __post_init__(self):
        for target in ("attention", "mlp"):
            indices = getattr(self, target)
            if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in indices):
                raise ValueError(f"LlmDrop.{target} takes layer indices from 0, got {indices}")
            setattr(self, target, sorted(set(indices)))

    def rebuild(self, model: Any) -> None:
        family, layers = droppable(model), layers_of(model)
        last = len(layers) - 1
        if too_large := [i for i in (*self.attention, *self.mlp) if i > last]:
            raise ValueError(f"LlmDrop names layers {too_large}, but {type(model).__name__} has layers 0 to {last}")
        if getattr(model.config, "add_cross_attention", False):
            raise ValueError(
                "LlmDrop works on decoder-only models; this one has cross-attention (add_cross_attention=True)"
            )
        for branch, indices in ((family.attention, self.attention), (family.mlp, self.mlp)):
            for layer in (layers[i] for i in indices):
                for name in branch.modules:
                    setattr(layer, name, None)
        for layer in layers:
            if any(getattr(layer, branch.module) is None for branch in (family.attention, family.mlp)):
                layer.__class__ = _partial_layer(
                    _whole_layer(type(layer)), family.attention, family.mlp, family.positional
                )
        assign_cache_entries(model.config, layers, family.attention.module)

    def renumbered(self, kept: list[int]) -> LlmDrop | None:
        attention, mlp = ([kept.index(i) for i in indices if i in kept] for indices in (self.attention, self.mlp))
        return LlmDrop(attention, mlp) if attention or mlp else None


def droppable(model: Any) -> Family:
    """The family of a model whose branches can be dropped; a ValueError with the reason otherwise."""
    family = family_of(model)
    name = model.config.model_type.removeprefix("surgical_")
    if family.post_norm:
        raise ValueError(
            f"LLM-Drop removes a norm together with the branch that it precedes; in '{name}' norms follow the residual sum"
        )
    if not family.plain:
        raise ValueError(
            f"LLM-Drop is for layers that are an attention and an MLP, each a module with a norm before it; those of '{name}' are more"
        )
    return family


class PartialLayer:
    """Marks layers that lost a branch."""


def _whole_layer(layer_class: type) -> type:
    return layer_class.__mro__[2] if issubclass(layer_class, PartialLayer) else layer_class


@cache
def _partial_layer(layer_class: type, attention: Branch, mlp: Branch, positional: tuple[str, ...]) -> type:
    """The layer class with a forward that runs only the branches that are left.

    It keeps its name, which `device_map` and output recording go by.
    """

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs |= {name: value for name, value in zip(positional, args) if value is not None}
        if getattr(self, attention.module) is not None:
            hidden_states = hidden_states + _branch(self, attention, hidden_states, **kwargs)
        if getattr(self, mlp.module) is not None:
            hidden_states = hidden_states + _branch(self, mlp, hidden_states)
        return hidden_states

    body = {"forward": forward, "__module__": __name__, "__qualname__": layer_class.__qualname__}
    return type(layer_class)(layer_class.__name__, (PartialLayer, layer_class), body)


def _branch(layer: nn.Module, branch: Branch, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    output = getattr(layer, branch.module)(getattr(layer, branch.norm_in)(hidden_states), **kwargs)
    output = output[0] if isinstance(output, tuple) else output
    output = getattr(layer, "dropout", nn.Identity())(output)
    return output if branch.norm_out is None else getattr(layer, branch.norm_out)(output)


@dataclass
class Similarities:
    """Mean cosine similarity per layer, over all tokens of all samples, float32; -inf for what is dropped already.

    attention, mlp: (layers,) between what enters the branch and what leaves it, residual included (`drop_norm`), or between what
        enters and what leaves the module alone.
    block: (layers,) between what enters and what leaves the layer.
    consecutive: (layers, layers); [i, g - 1] between what enters layer i and what enters layer i + g, -inf beyond the end.
    """

    attention: torch.Tensor
    mlp: torch.Tensor
    attention_after_norm: torch.Tensor
    mlp_after_norm: torch.Tensor
    block: torch.Tensor
    consecutive: torch.Tensor


class _Meter:
    """Running means of cosine similarities, by name and place."""

    def __init__(self, layers: int):
        self.layers = layers
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.keep: torch.Tensor | None = None
        self.counted = False

    def start(self, keep: torch.Tensor | None) -> None:
        """`keep`: (batch, length) bool, the tokens that count; all of them when None."""
        self.keep = keep
        self.counted = False

    def add(self, name: str, place: tuple[int, ...], before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        if self.keep is None:
            self.keep = torch.ones_like(cosine, dtype=torch.bool)
        if not self.counted:
            self.count += int(self.keep.sum())
            self.counted = True
        shape = (self.layers,) * len(place)
        sums = self.sums.setdefault(name, torch.full(shape, float("-inf"), dtype=torch.float64))
        total = cosine[self.keep.to(cosine.device)].double().sum().item()
        sums[place] = total + (0 if sums[place].isinf() else sums[place])

    def mean(self, name: str, dims: int) -> torch.Tensor:
        sums = self.sums.get(name, torch.full((self.layers,) * dims, float("-inf"), dtype=torch.float64))
        return (sums / self.count).float()


@torch.no_grad()
def compute_similarities(model: Any, batches: Iterable[torch.Tensor | Mapping[str, torch.Tensor]]) -> Similarities:
    """Measures every similarity in one pass over the intact model (paper, section 3).

    Args:
        model: a model of a known family; layers changed already are measured as they are.
        batches: token ids (batch, length), or dicts with `input_ids` and, where there is padding, `attention_mask`, or with
            `pixel_values`.

    Raises:
        ValueError: no batches, or a batch without tokens.
    """
    droppable(model)
    meter = _Meter(len(layers_of(model)))
    training = model.training
    model.eval()
    with _measuring(model, meter):
        for batch in batches:
            inputs = dict(batch) if isinstance(batch, Mapping) else {"input_ids": torch.as_tensor(batch)}
            ids = inputs.get("input_ids")
            if ids is not None and (ids.ndim != 2 or not ids.numel()):
                raise ValueError(f"A calibration batch is token ids of shape (batch, length), got {tuple(ids.shape)}")
            meter.start(inputs["attention_mask"].bool() if "attention_mask" in inputs else None)
            device = next(model.parameters()).device
            wanted = {k: inputs[k].to(device) for k in ("input_ids", "attention_mask", "pixel_values") if k in inputs}
            model.base_model(**wanted, **({} if ids is None else {"use_cache": False}))
    model.train(training)
    if not meter.count:
        raise ValueError("compute_similarities needs at least one calibration batch with a token that is not padding")
    return Similarities(
        attention=meter.mean("attention", 1),
        mlp=meter.mean("mlp", 1),
        attention_after_norm=meter.mean("attention_after_norm", 1),
        mlp_after_norm=meter.mean("mlp_after_norm", 1),
        block=meter.mean("consecutive", 2)[:, 0],
        consecutive=meter.mean("consecutive", 2),
    )


@contextmanager
def _measuring(model: Any, meter: _Meter) -> Iterator[None]:
    """Hooks that feed the meter while the model runs; at most the inputs of one batch's layers are held."""
    family, layers = family_of(model), layers_of(model)
    handles = []
    entered: list[torch.Tensor] = []

    def watch_block(index: int, layer: nn.Module) -> None:
        def before(_, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                entered.clear()
            entered.append(hidden)
            for gap in range(1, index + 1):
                meter.add("consecutive", (index - gap, gap - 1), entered[index - gap], hidden)

        def after(_, args, output):
            if index == len(layers) - 1:
                last = output[0] if isinstance(output, tuple) else output
                for start, hidden in enumerate(entered):
                    meter.add("consecutive", (start, len(layers) - start - 1), hidden, last)
                entered.clear()

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))

    def watch_branch(name: str, index: int, layer: nn.Module, branch: Branch) -> None:
        seen: dict[str, torch.Tensor] = {}

        def norm_in(_, args, output):
            seen.update(x=args[0], normed=output)

        def module(_, args, output):
            output = output[0] if isinstance(output, tuple) else output
            meter.add(f"{name}_after_norm", (index,), seen["normed"], output)
            if branch.norm_out is None:
                meter.add(name, (index,), seen["x"], seen["x"] + output)

        def norm_out(_, args, output):
            meter.add(name, (index,), seen["x"], seen["x"] + output)

        for attribute, hook in zip((branch.norm_in, branch.module, branch.norm_out), (norm_in, module, norm_out)):
            if attribute:
                handles.append(getattr(layer, attribute).register_forward_hook(hook))

    for index, layer in enumerate(layers):
        watch_block(index, layer)
        for name, branch in (("attention", family.attention), ("mlp", family.mlp)):
            if getattr(layer, branch.module) is not None:
                watch_branch(name, index, layer, branch)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rank(
    similarities: Similarities,
    n: int,
    target: Target = "attention",
    drop_norm: bool = True,
    reference_gap: bool = False,
) -> list[int]:
    """What to drop, the most similar first.

    Args:
        n: how many modules; for "joint", attentions and MLPs together; for the block targets, blocks.
        target: "attention", "mlp", "joint" (whichever of both is most similar), "block", or "block_consecutive" (n neighbours).
        drop_norm: score norm, module and residual together (the paper's choice), or the module alone.
        reference_gap: for "block_consecutive", score the gap n + 1 as the reference does, instead of n.

    Returns:
        Layer indices; for "joint", an index from the number of layers on means the MLP of layer `index - layers`.
    """
    layers = len(similarities.block)
    if target == "block_consecutive":
        gap = n + reference_gap
        if n < 1 or gap > layers:
            raise ValueError(f"rank(n={n}, target='block_consecutive') needs a gap from 1 to {layers}, got {gap}")
        start = int(similarities.consecutive[:, gap - 1].argmax())
        return list(range(start, min(start + n, layers)))
    attention = similarities.attention if drop_norm else similarities.attention_after_norm
    mlp = similarities.mlp if drop_norm else similarities.mlp_after_norm
    scores = {"attention": attention, "mlp": mlp, "joint": torch.cat([attention, mlp]), "block": similarities.block}
    if target not in scores:
        raise ValueError(f"rank(target='{target}') is not known; it is one of {[*scores, 'block_consecutive']}")
    available = int(scores[target].isfinite().sum())
    if not 0 <= n <= available:
        raise ValueError(f"rank(n={n}, target='{target}') is not possible: there are {available} to choose from")
    return scores[target].sort(descending=True, stable=True).indices[:n].tolist()


def choose(similarities: Similarities, n: int, target: Target = "attention", **options: bool) -> LlmDrop:
    """The recipe that drops the first `n` of `rank(similarities, n, target, **options)`."""
    layers = len(similarities.block)
    picked = rank(similarities, n, target, **options)
    if target in ("attention", "mlp"):
        return LlmDrop(**{target: picked})
    if target == "joint":
        return LlmDrop(attention=[i for i in picked if i < layers], mlp=[i - layers for i in picked if i >= layers])
    return LlmDrop(attention=picked, mlp=picked)


def compress(model: Any, calibration: Any, **count: int) -> Any:
    """The model without what a calibration finds most redundant.

    Args:
        calibration: batches, as `compute_similarities` takes them.
        count: one of `attention=8`, `mlp=4`, `joint=6`, `block=2`, `block_consecutive=2`, or several, done one after the other.

    Raises:
        ValueError: no calibration, no count, or more than there is.
    """
    targets = list(get_args(Target))
    if not count or set(count) - set(targets):
        raise ValueError(
            f"llm_drop takes how many of what to drop, {', '.join(f'{t}=N' for t in targets)}, got {count}"
        )
    if not calibration:
        raise ValueError("llm_drop chooses by similarity, which needs a calibration")
    for target, n in count.items():
        model = apply(model, choose(compute_similarities(model, calibration), n, target))
    return model


__all__ = ["LlmDrop", "Similarities", "choose", "compress", "compute_similarities", "rank"]
