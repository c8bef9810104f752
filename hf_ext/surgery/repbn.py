"""PRepBN in the place of the LayerNorm and RMSNorm of a Transformers model, and the folding of RepBN afterwards.

Paper: SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
arXiv 2405.11582, section 3.1. Reference: xinghaochen/SLAB.
On purpose otherwise than there: the norm after a patch embedding folds with its shortcut's share of the bias, and a final norm folds into
the head instead of rescaling the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import nn

from hf_ext.layers.fusion import check_can_fuse
from hf_ext.layers.repbn import LinearNorm, RepBatchNorm, fold_into_conv, fold_into_followers

from . import Recipe, SurgicalMixin, apply

NORMS_OF_ONE_HEAD = ("*q_norm", "*k_norm")


@dataclass
class RepBN(Recipe):
    """Swaps norms over the last axis: `nn.LayerNorm` and whatever is called RMSNorm.

    Args:
        warm, step, r0, update_every: the schedule, as `LinearNorm` takes it.
        exclude: patterns (`fnmatch`) of module names whose norms stay. The default leaves the norms of queries and keys.
        zero_init: whether RepBN starts as the map to zero; by default only where it replaces an RMSNorm, as in the paper.
        fused: RepBN is folded into its neighbours where it can be, and the norms that training began with are gone.
        fused_head: the final norm is folded into the model's head.
    """

    name = "repbn"
    needs_weights = False  # but for `fuse_repbn`
    warm: int = 0
    step: int = 300_000
    r0: float = 1.0
    update_every: int = 1
    exclude: list[str] = field(default_factory=lambda: list(NORMS_OF_ONE_HEAD))
    zero_init: bool | None = None
    fused: bool = False
    fused_head: bool = False

    def rebuild(self, model: Any) -> None:
        replaced = {id(module.norm1) for module in model.modules() if isinstance(module, LinearNorm)}
        found = [
            (name, module)
            for name, module in model.named_modules()
            if is_norm(module) and id(module) not in replaced and not any(fnmatchcase(name, p) for p in self.exclude)
        ]
        if not found:
            raise ValueError(
                f"{type(model).__name__} has no LayerNorm or RMSNorm to replace, other than {self.exclude} and what was replaced already"
            )
        for name, module in found:
            model.set_submodule(name, self._progressive(module))
        if self.fused_head and not has_foldable_head(model):
            raise ValueError(
                f"The final norm of this checkpoint is folded into a head that {type(model).__name__} has not; load it with the class "
                "that saved it, or take this part from the model before `fuse_repbn`"
            )
        if self.fused:
            fold(model, self.fused_head)

    def _progressive(self, norm: nn.Module) -> LinearNorm:
        plain = type(norm) is nn.LayerNorm
        repbn = RepBatchNorm(
            norm.normalized_shape[0] if plain else norm.weight.shape[0],
            eps=1e-5 if plain else getattr(norm, "variance_epsilon", None) or norm.eps or 1e-6,
            zero_init=not plain if self.zero_init is None else self.zero_init,
        )
        if norm.weight is not None:
            repbn.to(norm.weight.device, norm.weight.dtype)
        swapped = LinearNorm(norm, repbn, self.warm, self.step, self.r0, self.update_every)
        return swapped.to(repbn.alpha.device).train(norm.training)


def is_norm(module: nn.Module) -> bool:
    """A norm over the last axis that is no part of a `LinearNorm` yet. Subclasses of LayerNorm are left out: they take other layouts."""
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and isinstance(weight, torch.Tensor) and weight.ndim == 1


@dataclass(frozen=True)
class Folds:
    """Where the norms of a model type fold to; all names are seen from a module that holds both sides.

    before: a norm, and the linear layers that read it; nothing else does.
    after: a norm, and the convolution that it follows.
    head: as `before`, for a final norm, whose output is then no longer the model's last hidden state.
    unpadded: the type of layer that pads what the norm returns, and may not once it is folded.
    """

    before: tuple[tuple[str, tuple[str, ...]], ...] = ()
    after: tuple[tuple[str, str], ...] = ()
    head: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unpadded: str = ""


LLAMA_LIKE = Folds(
    before=(
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    )
)
VIT_LIKE = (
    ("layernorm_before", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    ("layernorm_after", ("mlp.fc1",)),
)
FOLDS: dict[str, Folds] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "vit": Folds(before=VIT_LIKE, head=(("vit.layernorm", ("classifier",)),)),
    "deit": Folds(
        before=VIT_LIKE,
        head=(
            ("deit.layernorm", ("classifier",)),
            ("deit.layernorm", ("cls_classifier", "distillation_classifier")),
        ),
    ),
    "swin": Folds(
        before=(*VIT_LIKE, ("norm", ("reduction",))),
        after=(("norm", "patch_embeddings.projection"),),
        head=(("swin.layernorm", ("classifier",)),),
        unpadded="SwinLayer",
    ),
}


def folds_of(model: nn.Module) -> Folds:
    return FOLDS.get(model.config.model_type.removeprefix("surgical_"), Folds())


def has_foldable_head(model: nn.Module) -> bool:
    return any(_foldable(model, norm, linears) for norm, linears in folds_of(model).head)


@torch.no_grad()
def fold(model: nn.Module, head: bool) -> None:
    """Folds every RepBN that `FOLDS` has a place for, in place; the others stay, without the norm that training began with."""
    folds = folds_of(model)
    for parent in list(model.modules()):
        for norm, linears in (*folds.before, *(folds.head if head else ())):
            if _foldable(parent, norm, linears):
                fold_into_followers(parent, norm, linears)
        for norm, conv in folds.after:
            if _has(parent, norm, LinearNorm) and _has(parent, conv, nn.Conv2d):
                parent.set_submodule(conv, fold_into_conv(parent.get_submodule(conv), parent.get_submodule(norm)))
                parent.set_submodule(norm, nn.Identity())
        if type(parent).__name__ == folds.unpadded and isinstance(parent.layernorm_before, nn.Identity):
            parent.__class__ = _unpadded(type(parent))
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearNorm):
            model.set_submodule(name, module.fuse())


def _foldable(parent: nn.Module, norm: str, linears: tuple[str, ...]) -> bool:
    return _has(parent, norm, LinearNorm) and all(_has(parent, name, nn.Linear) for name in linears)


def _has(parent: nn.Module, name: str, kind: type) -> bool:
    try:
        return isinstance(parent.get_submodule(name), kind)
    except AttributeError:
        return False


@cache
def _unpadded(layer_class: type) -> type:
    """The layer class (it keeps its name, which `device_map` goes by), which refuses maps that its windows do not divide."""

    def maybe_pad(self, hidden_states: torch.Tensor, height: int, width: int) -> Any:
        if height % self.window_size or width % self.window_size:
            raise ValueError(
                f"The norms of this model are folded, so maps cannot be padded: windows of {self.window_size} do not divide one of "
                f"{height} x {width}. Give images of another size, or use the model before `fuse_repbn`"
            )
        return layer_class.maybe_pad(self, hidden_states, height, width)

    body = {"maybe_pad": maybe_pad, "__module__": __name__, "__qualname__": layer_class.__qualname__}
    return type(layer_class)(layer_class.__name__, (layer_class,), body)


def convert_norms(model: Any, **recipe: Any) -> Any:
    """A copy of a Transformers model with PRepBN in the place of its LayerNorms and RMSNorms; the other tensors are shared.

    In eval mode only RepBN is used, so the model has to be trained with its schedule (`ProgressiveNormCallback`) first.

    Args:
        model: any upstream model. In those of `FOLDS` RepBN can be folded away later. Elsewhere it stays, as a scale and a shift for
            each channel; where a norm follows the residual sum, as in BERT, there is no place to fold it to. Padding tokens count
            in the statistics (`SlabLlamaForCausalLM` leaves them out of its final norm).
        recipe: fields of `RepBN`.

    Raises:
        ValueError: no norm to replace, or a schedule that is not possible.
    """
    return apply(model, RepBN(**recipe))


def fuse_repbn(model: Any) -> Any:
    """Folds the RepBN of a converted model into its neighbours, in place. Outputs stay equal up to rounding.

    The hidden states of a model whose head takes in the final norm are those before that norm.

    Raises:
        ValueError: the model was not made by `convert_norms`, or it is in training mode, adapted, quantized or offloaded.
    """
    entries = [entry for entry in getattr(model.config, "surgery", None) or () if entry["name"] == RepBN.name]
    if not isinstance(model, SurgicalMixin) or not entries:
        raise ValueError(f"{type(model).__name__} was not made by `convert_norms`: there is no RepBN to fold")
    if not all(entry["fused"] for entry in entries):
        check_can_fuse(model)
        head = has_foldable_head(model)
        fold(model, head)
        for entry in entries:
            entry.update(fused=True, fused_head=head)
    return model


__all__ = ["FOLDS", "RepBN", "convert_norms", "fuse_repbn"]
