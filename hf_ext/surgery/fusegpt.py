"""FuseGPT: the block that a model misses least goes, and its weights are fused into those of its neighbours.

    smaller = compress(model, batches, blocks=2)             # a plain model of the same type with two layers less

    fused = fit(model, batches, blocks=2)                    # a Surgical<Base>, the fused weights still apart: it saves, loads and trains
    Trainer(fused, ..., optimizers=(fusion_optimizer(fused), None)).train()         # of hf_ext.training.fusegpt
    smaller = fold(fused)

Paper: FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers, arXiv 2411.14507. Reference: JarvisPei/FuseGPT.
On purpose otherwise than there: each neighbour's group may start at block 0; a bias that was fused before stays in the sum when another
follows; dropout is off while a group is fitted; padding does not count; only the blocks behind the missing one run again when
influence is measured. A removed block keeps its place, empty, until `fold`, so that layers keep their numbers.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import tqdm

from hf_ext.files import atomic_folder
from hf_ext.layers.fusion import Unfolded, check_plain_weights

from . import PREFIX, Recipe, SurgicalMixin, apply, copy_as, recipe_from, release, surgical_config
from .families import assign_cache_entries, family_of, layers_of

CoefficientMode = Literal["lora", "matrix", "vector"]
PER_LAYER = ("layer_types",)  # fields of a configuration that have an entry for each layer

Batches = Sequence[Mapping[str, torch.Tensor]]


@dataclass
class FuseGPT(Recipe):
    """Fuses blocks into their neighbours; what that makes of the model is to be fitted, by `fit` or by training, and then folded.

    Each linear layer of a neighbour computes with W + B A + sum_k C_k * A_k: its own weight, a low-rank update, and the weights of
    removed blocks, each entry times a learnable coefficient. C_k and B A are zero at first: the model is then the one without the blocks.

    Args:
        layers: the blocks to fuse, in this order, by their numbers in the whole model.
        group_size: blocks that a fusion involves, the removed one included.
        coef_mode: coefficients as a low-rank product ("lora"), one for each entry ("matrix") or for each row ("vector").
        lora_rank: rank of the coefficients.
        weight_lora_rank: rank of the update B A.
    """

    name = "fusegpt"
    needs_weights = False  # of its own kind, layers that are not folded yet will do
    layers: list[int] = field(default_factory=list)
    group_size: int = 8
    coef_mode: CoefficientMode = "lora"
    lora_rank: int = 128
    weight_lora_rank: int = 128

    def __post_init__(self):
        if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in self.layers):
            raise ValueError(f"FuseGPT.layers takes layer indices from 0, got {self.layers}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"FuseGPT.layers names a layer twice: {self.layers}")
        if self.coef_mode not in get_args(CoefficientMode):
            raise ValueError(
                f"FuseGPT.coef_mode='{self.coef_mode}' is not one of {', '.join(get_args(CoefficientMode))}"
            )
        for name, least in (("group_size", 2), ("lora_rank", 1), ("weight_lora_rank", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"FuseGPT.{name}={value!r} must be a whole number of at least {least}")

    def rebuild(self, model: Any) -> None:
        check_stack(model)
        layers = layers_of(model)
        for index in self.layers:
            left = present(layers)
            if index not in left:
                raise ValueError(
                    f"FuseGPT.layers={self.layers} names layer {index}, but {type(model).__name__} has {left}"
                )
            if len(left) == 1:
                raise ValueError(f"FuseGPT cannot fuse layer {index}: it is the last one of {type(model).__name__}")
            group = fusion_group(left.index(index), len(left), self.group_size)
            neighbours = [layers[i] for i in left[group.first : group.last + 1] if i != index]
            fuse(layers[index], neighbours, self.coef_mode, self.lora_rank, self.weight_lora_rank)
            remove(layers[index])
        assign_cache_entries(model.config, layers, family_of(model).attention.module)


def check_stack(model: Any) -> None:
    """A ValueError with the reason where the model is no stack of equal layers."""
    family, name = family_of(model), model.config.model_type.removeprefix("surgical_")
    if "*" in family.layers:
        raise ValueError(
            f"FuseGPT adds up the weights of neighbouring blocks; those of '{name}' differ in width from stage to stage"
        )
    if getattr(model.config, "add_cross_attention", False):
        raise ValueError(
            "FuseGPT works on decoder-only models; this one has cross-attention (add_cross_attention=True)"
        )
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "FuseGPT moves layers to other places, where this model scales attention otherwise (scale_attn_by_inverse_layer_idx=True)"
        )


class FusedWeight(nn.Module):
    """C * A: a removed weight A (out, in), frozen, times coefficients C that start at zero."""

    def __init__(self, weight: torch.Tensor, mode: CoefficientMode, rank: int):
        super().__init__()
        columns = {"lora": rank, "matrix": weight.shape[1], "vector": 1}[mode]
        self.register_buffer("weight", weight)
        self.coef = nn.Parameter(weight.new_zeros(weight.shape[0], columns))
        self.coef_right = low_rank_factor(weight, rank) if mode == "lora" else None

    def forward(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        factors = [factor.to(dtype) for factor in (self.coef, self.coef_right) if factor is not None]
        coefficients = factors[0] @ factors[1] if len(factors) == 2 else factors[0]
        return coefficients * self.weight.to(dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.clone()  # neighbours share it; files of safetensors cannot


def low_rank_factor(weight: torch.Tensor, rank: int) -> nn.Parameter:
    factor = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
    nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    return factor


class FuseLinear(Unfolded, nn.Linear):
    """y = x (W + B A + sum_k C_k * A_k)^T + b + c * b_k, in the place of an `nn.Linear` or, transposed, of a `Conv1D`.

    Args:
        linear: the layer whose place it takes; its tensors are used as they are.
        rank: of B A.
    """

    def __init__(self, linear: nn.Linear | Conv1D, rank: int):
        weight, conv1d = linear.weight, isinstance(linear, Conv1D)
        if conv1d:
            weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
        super().__init__(*reversed(weight.shape), bias=False, device="meta")
        self.conv1d = conv1d
        self.weight, self.bias = weight, linear.bias
        self.low_rank_A = low_rank_factor(weight, rank)
        self.low_rank_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.fused = nn.ModuleList()
        self.coef_bias = None
        self.train(linear.training)

    @torch.no_grad()
    def add(self, weight: torch.Tensor, bias: torch.Tensor | None, mode: CoefficientMode, rank: int) -> None:
        """Fuses one more layer of this shape, whose weight is (out, in)."""
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"FuseGPT adds up weights of equal shape, not {tuple(weight.shape)} and {tuple(self.weight.shape)}: fuse before layers "
                "are made narrower"
            )
        self.fused.append(FusedWeight(weight.to(self.weight.device), mode, rank).train(self.training))
        if bias is not None and self.bias is not None:
            self.bias = nn.Parameter(self.merged_bias(), self.bias.requires_grad)
            self.coef_bias = nn.Parameter(torch.zeros_like(self.bias))
            self.register_buffer("fused_bias", bias.detach().to(self.bias.device, copy=True))

    def merged_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """(out, in), computed in `dtype`, the weight's own by default."""
        weight = self.weight.to(dtype) + self.low_rank_B.to(dtype) @ self.low_rank_A.to(dtype)
        for fused in self.fused:
            weight = weight + fused(dtype)
        return weight

    def merged_bias(self, dtype: torch.dtype | None = None) -> torch.Tensor | None:
        if self.coef_bias is None:
            return None if self.bias is None else self.bias.to(dtype)
        return self.bias.to(dtype) + self.coef_bias.to(dtype) * self.fused_bias.to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.merged_weight(), self.merged_bias())

    @torch.no_grad()
    def fold(self) -> nn.Linear | Conv1D:
        """The plain layer that computes the same, merged in float32."""
        weight, bias = self.merged_weight(torch.float32), self.merged_bias(torch.float32)
        with torch.device("meta"):
            if self.conv1d:
                plain, weight = Conv1D(self.out_features, self.in_features), weight.T.contiguous()
            else:
                plain = nn.Linear(self.in_features, self.out_features)
        trainable, dtype = self.weight.requires_grad, self.weight.dtype
        plain.weight = nn.Parameter(weight.to(dtype), trainable)
        plain.bias = None if bias is None else nn.Parameter(bias.to(dtype), trainable)
        return plain.train(self.training)


def weight_and_bias(linear: nn.Linear | Conv1D) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a layer computes with: a weight (out, in) and a bias, or None."""
    if isinstance(linear, FuseLinear):
        return linear.merged_weight(), linear.merged_bias()
    weight = linear.weight.detach()
    return weight.T.contiguous() if isinstance(linear, Conv1D) else weight, linear.bias


class Group(NamedTuple):
    """The blocks of a fusion, by their places among those that are left; `target` is the neighbour that it is laid around."""

    first: int
    last: int
    target: int


def fusion_group(index: int, num_layers: int, group_size: int) -> Group:
    """The blocks from `first` to `last`, both included, that the fusion of block `index` involves."""
    size = min(group_size, num_layers)
    target = index - 1 if index else 1
    if index == 0 or target - (size / 2 - 1) < 0:
        return Group(0, size - 1, target)
    if index + (size / 2 - 1) > num_layers - 1:
        return Group(num_layers - size, num_layers - 1, target)
    reach = size // 2 - 1
    return Group(target - reach, index + reach, target)


def linears_of(layer: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a block by name; a ValueError where one is quantized or adapted."""
    found = {name: module for name, module in layer.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    if any(hasattr(module, "base_layer") for module in layer.modules()):
        raise ValueError("The model carries adapters: `merge_and_unload()` them before blocks are fused")
    for name, module in found.items():
        if type(module) not in (nn.Linear, Conv1D, FuseLinear):
            raise ValueError(
                f"FuseGPT adds up plain weights, and '{name}' is a {type(module).__name__}: fuse first, then quantize or replace"
            )
    return found


@torch.no_grad()
def fuse(
    removed: nn.Module,
    neighbours: Sequence[nn.Module],
    mode: CoefficientMode = "lora",
    rank: int = 128,
    weight_rank: int = 128,
) -> None:
    """Fuses the linear layers of one block into those of the same name of others, in place.

    Args:
        removed: the block that will go; one that others were fused into counts with its merged weights.
        neighbours: the others. What they have lost, an attention for one, is left out.
        mode, rank: of the coefficients.
        weight_rank: of the low-rank update of the weights themselves.
    """
    for name, linear in linears_of(removed).items():
        weight, bias = weight_and_bias(linear)
        for layer in neighbours:
            other = linears_of(layer).get(name)
            if other is None:
                continue
            if not isinstance(other, FuseLinear):
                other = FuseLinear(other, weight_rank)
                layer.set_submodule(name, other)
            other.add(weight, bias, mode, rank)


@cache
def _empty_layer(layer_class: type) -> type:
    """The layer class as the identity. It keeps its name, which `device_map` and output recording go by."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states

    body = {"forward": forward, "__module__": __name__, "__qualname__": layer_class.__qualname__}
    return type(layer_class)(layer_class.__name__, (layer_class,), body)


def remove(layer: nn.Module) -> None:
    """Empties a block, in place; what enters it leaves it."""
    for name in (*layer._modules, *layer._parameters):
        setattr(layer, name, None)
    layer.__class__ = _empty_layer(type(layer))


def present(layers: Sequence[nn.Module]) -> list[int]:
    """Which blocks are left: those with anything in them. Another recipe may have emptied some, too."""
    return [index for index, layer in enumerate(layers) if next(layer.parameters(), None) is not None]


class Call(NamedTuple):
    """What a block is called with besides hidden states: masks and positions."""

    rest: tuple[Any, ...]
    options: dict[str, Any]


@dataclass
class Record:
    """One forward pass. By number of the block: the hidden states (batch, tokens, width) that entered it, and how it was called;
    `last` left the last block, before the final norm."""

    entered: dict[int, torch.Tensor] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    last: torch.Tensor | None = None

    def before(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = dict(kwargs)
        self.entered[index] = args[0] if args else options.pop("hidden_states")
        self.calls[index] = Call(args[1:], options)

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.last = output


@torch.no_grad()
def record(model: Any, batch: Mapping[str, torch.Tensor]) -> Record:
    """Runs the base model and records the blocks that are left.

    Args:
        batch: forward arguments; what the base model does not take, labels for one, is left out.
    """
    base, found = model.base_model, Record()
    accepted = inspect.signature(base.forward).parameters
    device = next(base.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name in accepted
    }
    if not inputs:
        raise ValueError(f"{type(base).__name__} takes none of what the calibration batch holds: {', '.join(batch)}")
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    layers = layers_of(model)
    left = present(layers)
    handles = [layers[i].register_forward_pre_hook(partial(found.before, i), with_kwargs=True) for i in left]
    handles.append(layers[left[-1]].register_forward_hook(found.after))
    try:
        base(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def run(
    layers: Sequence[nn.Module], calls: Sequence[Call], hidden_states: torch.Tensor, checkpointed: bool = False
) -> torch.Tensor:
    """Blocks one after the other, each with what it was called with; without their hooks, whose work the record holds already."""
    for layer, call in zip(layers, calls):
        step = partial(layer.forward, **call.options)
        arguments = (hidden_states, *call.rest)
        hidden_states = checkpoint(step, *arguments, use_reentrant=False) if checkpointed else step(*arguments)
    return hidden_states


def tokens_that_count(batch: Mapping[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, 1) bool: all but padding."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return torch.ones(*like.shape[:2], 1, dtype=torch.bool, device=like.device)
    return mask.bool()[..., None].to(like.device)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def similarity_without(model: Any, batches: Batches) -> torch.Tensor:
    """How much the last hidden state stays the same without a block: 1 minus its macro influence.

    Args:
        model: a stack of equal blocks.
        batches: forward arguments.

    Returns:
        (layers,) float32, the mean over tokens of the cosine between the hidden states behind the last block with and without block i;
        -inf for blocks that are gone.
    """
    check_stack(model)
    check_batches(batches)
    layers = layers_of(model)
    left = present(layers)
    sums, count = torch.zeros(len(layers), dtype=torch.float64), 0
    with _evaluating(model):
        for batch in tqdm(batches, desc="influence", leave=False):
            found = record(model, batch)
            keep = tokens_that_count(batch, found.last)[..., 0]
            count += int(keep.sum())
            for place, index in enumerate(left):
                behind = left[place + 1 :]
                without = run([layers[i] for i in behind], [found.calls[i] for i in behind], found.entered[index])
                if without.shape != found.last.shape:
                    raise ValueError(
                        f"Block {index} changes the shape of hidden states, so the others cannot do without: fuse first"
                    )
                cosine = F.cosine_similarity(found.last.float(), without.float(), dim=-1)
                sums[index] += cosine[keep].double().sum().item()
    if not count:
        raise ValueError("The calibration has no token that is not padding")
    similarity = (sums / count).float()
    similarity[[i for i in range(len(layers)) if i not in left]] = float("-inf")
    return similarity


def check_batches(batches: Batches) -> None:
    if not batches:
        raise ValueError("FuseGPT measures influence and fits groups on a calibration: give it at least one batch")
    if any(not isinstance(batch, Mapping) for batch in batches):
        raise ValueError("A calibration batch is a dict of forward arguments, input_ids or pixel_values")


def _divergence(dim: int, hidden_states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(target || hidden states) as distributions along `dim`, by element, divided by the size of the batch."""
    found, expected = F.log_softmax(hidden_states, dim=dim), F.log_softmax(target, dim=dim)
    return F.kl_div(found, expected, reduction="none", log_target=True) / len(target)


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kl_batch": partial(_divergence, 0),  # the reference's: distributions over the sequences of the batch
    "kl_width": partial(_divergence, -1),
    "mse": lambda hidden_states, target: (hidden_states - target).square() / target.numel(),
}


class Sample(NamedTuple):
    """A batch at a group: what enters, what left it when it was whole, the tokens that count, and how each block is called."""

    hidden_states: torch.Tensor
    target: torch.Tensor
    keep: torch.Tensor
    calls: list[Call]


def group_parameters(
    module: nn.Module, coef_lr: float = 1e-3, base_lr: float = 9.65e-6
) -> list[dict[str, list[nn.Parameter] | float]]:
    """What is fitted, for an optimizer: coefficients at `coef_lr`; low-rank updates, norms and biases at `base_lr`."""
    trained = dict(fitted_parameters(module))
    coefficients = [parameter for name, parameter in trained.items() if "coef" in name]
    others = [parameter for name, parameter in trained.items() if "coef" not in name]
    return [{"params": others, "lr": base_lr}, {"params": coefficients, "lr": coef_lr}]


def fitted_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, part in module.named_modules():
        frozen = "weight" if isinstance(part, (nn.Linear, Conv1D)) else None
        for name, parameter in part.named_parameters(prefix, recurse=False):
            if name.rpartition(".")[2] != frozen:
                yield name, parameter


def adam(groups: list[dict[str, Any]]) -> torch.optim.Adam:
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8)


def fit_group(
    layers: nn.ModuleList,
    samples: Sequence[Sample],
    epochs: int = 20,
    coef_lr: float = 1e-3,
    base_lr: float = 9.65e-6,
    loss: str = "kl_batch",
    gradient_checkpointing: bool = False,
) -> list[float]:
    """Fits what blocks were fused into, in place, until the group gives what it gave when it was whole. Returns the loss of each step.

    Args:
        layers: the blocks of the group that are left.
        samples: one for each batch; they are gone through in order, `epochs` times, with a learning rate that falls to zero as a cosine.
    """
    device = next(layers.parameters()).device
    groups = group_parameters(layers, coef_lr, base_lr)
    parameters = [parameter.requires_grad_() for group in groups for parameter in group["params"]]
    optimizer = adam(groups)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(samples))
    losses = []
    with torch.enable_grad():
        for sample in (sample for _ in tqdm(range(epochs), desc="fitting", leave=False) for sample in samples):
            output = run(layers, sample.calls, sample.hidden_states.to(device), gradient_checkpointing)
            terms = LOSSES[loss](output.float(), sample.target.to(device).float())
            value = (terms * sample.keep.to(device)).sum()
            for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True)):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(value.item())
    return losses


def fit(
    model: Any,
    calibration: Batches,
    blocks: int | None = None,
    prune_rate: float = 0.25,
    group_size: int = 8,
    coef_mode: CoefficientMode = "lora",
    lora_rank: int = 128,
    weight_lora_rank: int = 128,
    coef_lr: float = 1e-3,
    base_lr: float = 9.65e-6,
    epochs: int = 20,
    iterative: bool = True,
    eval_batches: int = 4,
    loss: str = "kl_batch",
    gradient_checkpointing: bool = False,
    save_to: str | Path | None = None,
) -> Any:
    """Fuses the blocks of least macro influence, one after the other, and fits each group; the given model stays as it is.

    Args:
        model: a stack of equal blocks; one that was fused before (read back from `save_to`, for one) goes on from there.
        calibration: batches of forward arguments; in the loss "kl_batch" one of a single sequence counts for nothing. The paper has up
            to 1024 sequences of 2048 tokens, 8 in a batch. What enters and leaves a group is kept in the memory of the CPU.
        blocks: how many go in all; `prune_rate` of the layers, rounded up, where it is None.
        group_size, coef_mode, lora_rank, weight_lora_rank: see `FuseGPT`.
        coef_lr, base_lr: learning rates of the coefficients, and of low-rank updates, norms and biases.
        epochs: passes over the calibration for each group.
        iterative: measure influence again after each fusion.
        eval_batches: batches that influence is measured on.
        loss: "kl_batch" (the reference's), "kl_width" (along the width) or "mse".
        gradient_checkpointing: compute a block's activations again in the backward pass instead of keeping them.
        save_to: folder that gets the model, not yet folded, after each fusion.

    Returns:
        `Surgical<Base>`, not folded.

    Raises:
        ValueError: no calibration, more blocks than there are, a model that is no stack of equal blocks, quantized or adapted weights.
    """
    check_stack(model)
    check_batches(calibration)
    check_plain_weights(model)
    if loss not in LOSSES:
        raise ValueError(f"loss='{loss}' is not one of {', '.join(LOSSES)}")
    if not 0 < prune_rate < 1:
        raise ValueError(f"prune_rate={prune_rate} must be a share between 0 and 1")
    if epochs < 1 or eval_batches < 1:
        raise ValueError(f"epochs={epochs} and eval_batches={eval_batches} must be at least 1")
    layers = layers_of(model)
    blocks = math.ceil(len(layers) * prune_rate) if blocks is None else blocks
    if not isinstance(blocks, int) or not 0 < blocks < len(layers):
        raise ValueError(
            f"blocks={blocks} must be a whole number from 1 to {len(layers) - 1}: {type(model).__name__} has {len(layers)} layers"
        )
    if loss == "kl_batch" and all(len(next(iter(batch.values()))) < 2 for batch in calibration):
        raise ValueError(
            "loss='kl_batch' compares the sequences of a batch: give batches of two or more, or loss='kl_width' or 'mse'"
        )
    structure = {
        "group_size": group_size, "coef_mode": coef_mode, "lora_rank": lora_rank, "weight_lora_rank": weight_lora_rank
    }  # fmt: skip
    fitting = {
        "epochs": epochs, "coef_lr": coef_lr, "base_lr": base_lr, "loss": loss,
        "gradient_checkpointing": gradient_checkpointing,
    }  # fmt: skip
    fused, order = model, None
    with _evaluating(model):
        for _ in tqdm(range(blocks - len(layers) + len(present(layers))), desc="blocks"):
            if iterative or order is None:
                similarity = similarity_without(fused, calibration[:eval_batches])
                order = similarity.sort(descending=True, stable=True).indices.tolist()
            fused = _fuse_and_fit(fused, FuseGPT([order.pop(0)], **structure), calibration, fitting)
            if save_to is not None:
                with atomic_folder(save_to) as folder:
                    fused.save_pretrained(folder)
    return fused.train(model.training)


def _fuse_and_fit(model: Any, recipe: FuseGPT, batches: Batches, options: Mapping[str, Any]) -> Any:
    (index,) = recipe.layers
    left = present(layers_of(model))
    group = fusion_group(left.index(index), len(left), recipe.group_size)
    places = left[group.first : group.last + 1]
    samples = [_sample(model, batch, places, index) for batch in batches]
    fused = apply(model, recipe)
    layers = nn.ModuleList(layers_of(fused)[i] for i in places if i != index)
    for name, parameter in list(fitted_parameters(layers)):  # no longer shared with the model before
        owner, _, attribute = name.rpartition(".")
        setattr(layers.get_submodule(owner), attribute, nn.Parameter(parameter.detach().clone()))
    fit_group(layers, samples, **options)
    _join_entries(fused.config.surgery)
    return fused


def _sample(model: Any, batch: Mapping[str, torch.Tensor], places: list[int], removed: int) -> Sample:
    found = record(model, batch)
    behind = min((i for i in found.entered if i > places[-1]), default=None)
    target = found.last if behind is None else found.entered[behind]
    calls = [found.calls[i] for i in places if i != removed]
    return Sample(found.entered[places[0]].cpu(), target.cpu(), tokens_that_count(batch, target).cpu(), calls)


def _join_entries(surgery: list[dict[str, Any]]) -> None:
    """Makes one entry of the last two where they differ in their layers alone."""
    if len(surgery) > 1 and surgery[-2] | {"layers": []} == surgery[-1] | {"layers": []}:
        last = surgery.pop()
        surgery[-1]["layers"] += last["layers"]


@torch.no_grad()
def fold(model: Any) -> Any:
    """The model with all weights merged and the removed blocks gone: a plain one where nothing else was changed.

    Layers get new numbers; recipes that name layers are renumbered. The given model stays as it is.

    Raises:
        ValueError: nothing is fused, or weights are quantized, adapted or offloaded.
    """
    entries = getattr(model.config, "surgery", None) or ()
    if not isinstance(model, SurgicalMixin) or not any(entry["name"] == FuseGPT.name for entry in entries):
        raise ValueError(f"{type(model).__name__} holds no fused blocks: there is nothing to fold")
    check_plain_weights(model)
    kept, family = present(layers_of(model)), family_of(model)
    smaller = copy_as(model, _folded_config(model.config, kept, entries))
    stack = smaller.base_model.get_submodule(family.layers)
    for index in reversed(range(len(stack))):
        if index not in kept:
            _hand_hooks_on(stack[index], stack[index + 1 :])
            del stack[index]
    for name, module in list(stack.named_modules()):
        if isinstance(module, FuseLinear):
            stack.set_submodule(name, module.fold())
    assign_cache_entries(smaller.config, list(stack), family.attention.module)
    if not getattr(smaller.config, "surgery", None):
        return release(smaller)
    _check_restores(smaller)
    return smaller


def _hand_hooks_on(layer: nn.Module, later: nn.ModuleList) -> None:
    """Another recipe may have hooked a layer as the first one; then the one that follows is the first."""
    for key, hook in layer._forward_pre_hooks.items() if len(later) else ():
        later[0].register_forward_pre_hook(hook, with_kwargs=key in layer._forward_pre_hooks_with_kwargs)


def _check_restores(model: Any) -> None:
    """A ValueError where the recipes of the configuration do not make of a new model what this one is."""
    with torch.device("meta"):
        restored = type(model)(copy.deepcopy(model.config))
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (restored, model)]
    if different := sorted(name for name in set().union(*shapes) if shapes[0].get(name) != shapes[1].get(name)):
        recipes = ", ".join(entry["name"] for entry in model.config.surgery)
        raise ValueError(
            f"Of {recipes}, some name layers and cannot be renumbered (see {different[0]}): fold before them"
        )


def _folded_config(config: Any, kept: list[int], entries: Sequence[dict[str, Any]]) -> Any:
    """The configuration for the layers that are kept, with the recipes other than this one."""
    fields = config.to_dict()
    fields.pop("surgery")
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    fields[count] = len(kept)
    fields |= {name: [fields[name][i] for i in kept] for name in PER_LAYER if fields.get(name)}
    renumbered = [recipe_from(entry).renumbered(kept) for entry in entries if entry["name"] != FuseGPT.name]
    others = [recipe.to_dict() for recipe in renumbered if recipe is not None]
    base = fields.pop("model_type").removeprefix(f"{PREFIX.lower()}_")
    smaller = (surgical_config(base) if others else CONFIG_MAPPING[base]).from_dict(fields)
    if others:
        smaller.surgery = others
    smaller._attn_implementation = config._attn_implementation
    return smaller


def compress(model: Any, calibration: Batches | None, **options: Any) -> Any:
    """`fit` and `fold`: a plain model with less layers, the given one unchanged. `options` are those of `fit`, `blocks=2` for one."""
    return fold(fit(model, calibration or (), **options))


__all__ = ["FuseGPT", "compress", "fit", "fold", "fuse", "fusion_group", "similarity_without"]
