"""How much each head, neuron and token of a model matters: masked alone, how far it carries the layers above it off their trajectory.

Paper: The Need for Speed: Pruning Transformers with One Recipe (OPTIN), arXiv 2403.17921, section 3.1. Reference:
Skhaki18/optin-transformer-pruning (MIT). A unit is scored on the layers from its own on, many units at a time; features are compared at the
same tokens for all units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from hf_ext.layers.narrowing import widths

from .families import Branch, Family
from .units import branch_of, is_gone, part, prunable, special_tokens, units

ROWS = 768  # of a layer's features that are compared (reference)
TOKENS_AT_ONCE = 8192

Batches = Mapping[str, torch.Tensor] | Sequence[Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Scoring:
    """How units are scored; every unit is masked alone, and what changes above it is measured.

    Args:
        loss_type: "MMD+KL", or only "MMD" (relations between the features of later layers) or "KL" (the logits).
        lambda_contribution: about how much larger than KL the features' loss should count; KL is scaled by a power of ten to that.
        temperature: KL is multiplied by its square.
        aggregate: "sum" or "mean" of the squared differences of relations.
        relations: between "tokens" of the whole batch (at most 768 of them), or between "samples", averaged over their tokens (the
            reference's alternative for images).
        head_last_layer, neuron_last_layer: the last layer has none above it; whether its own features count instead.
        head_last_layer_decay, neuron_last_layer_decay: factors for the last layer's scores.
        head_decay, neuron_decay: factors that balance heads against neurons.
        head_index_prior, neuron_index_prior: factor for the first unit of a layer, falling geometrically to 1 at the last.
        leak_head_mask: the reference's last head of each layer stays masked while later layers are scored.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    loss_type: Literal["MMD+KL", "MMD", "KL"] = "MMD+KL"
    lambda_contribution: float = 10
    temperature: float = 4
    aggregate: Literal["sum", "mean"] = "sum"
    relations: Literal["tokens", "samples"] = "tokens"
    head_last_layer: bool = True
    neuron_last_layer: bool = True
    head_last_layer_decay: float = 0.5
    neuron_last_layer_decay: float = 0.5
    head_decay: float = 0.5
    neuron_decay: float = 1
    head_index_prior: float = 1
    neuron_index_prior: float = 1
    leak_head_mask: bool = False

    def __post_init__(self):
        choices = {
            "loss_type": ("MMD+KL", "MMD", "KL"),
            "aggregate": ("sum", "mean"),
            "relations": ("tokens", "samples"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not (isinstance(value, bool) or 0 < value < math.inf):
                raise ValueError(f"{name}={value} must be a number above 0")

    @classmethod
    def reference(cls, **fields: Any) -> Scoring:
        """The scoring of the reference's code, with the index priors and the leak, unless `fields` say otherwise."""
        return cls(**{"head_index_prior": 10, "neuron_index_prior": 100, "leak_head_mask": True} | fields)


def manifold_loss(
    teacher: torch.Tensor,
    student: torch.Tensor,
    aggregate: Literal["sum", "mean"] = "sum",
    relations: Literal["tokens", "samples"] = "tokens",
) -> torch.Tensor:
    """How much the relations between features differ, 0 or more (paper, section 3.1): squared differences of cosines.

    Args:
        teacher: (batch, tokens, channels).
        student: (..., batch, tokens, channels); the result is (...).
        aggregate, relations: see `Scoring`.
    """
    if relations == "samples":
        means = []
        for features in (teacher, student):
            features = F.normalize(features.float(), dim=-1).transpose(-3, -2)
            means.append((features @ features.mT).mean(-3))  # over tokens; (..., batch, batch)
        squares = (means[0] - means[1]).square()
        return squares.sum((-2, -1)) if aggregate == "sum" else squares.mean((-2, -1))
    teacher, student = teacher.flatten(0, 1), student.flatten(-3, -2)  # (rows, channels)
    if teacher.shape[0] > ROWS:
        rows = torch.randperm(teacher.shape[0], generator=torch.Generator().manual_seed(0))[:ROWS].to(teacher.device)
        teacher, student = teacher[rows], student[..., rows, :]
    teacher, student = (F.normalize(features.float(), dim=-1) for features in (teacher, student))
    # tt' - ss' = (ab' + ba') / 2 with a = t + s and b = t - s, which has no difference of large numbers; and either form of its norm,
    # over rows or over channels, whichever are fewer
    a, b = teacher + student, teacher - student
    rows, channels = teacher.shape
    if 3 * channels < rows:
        cross = b.mT @ a
        total = ((a.mT @ a) * (b.mT @ b) + cross * cross.mT).sum((-2, -1)) / 2
    else:
        product = a @ b.mT
        total = ((product + product.mT) / 2).square().sum((-2, -1))
    return total if aggregate == "sum" else total / rows**2


def logit_loss(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 4) -> torch.Tensor:
    """KL divergence of predictions, summed over everything, times the temperature squared; 0 or more.

    Args:
        teacher: log-probabilities (batch, ..., classes).
        student: (..., batch, ..., classes); the result has what is in front.
    """
    divergence = teacher.exp() * (teacher - student)
    return divergence.flatten(divergence.ndim - teacher.ndim).sum(-1).clamp_min(0) * temperature**2


def log_probabilities(output: Any) -> torch.Tensor | None:
    """What a model predicts, classes last; None of a model without a head. Of masks with classes, the classes of pixels."""
    if (masks := getattr(output, "masks_queries_logits", None)) is not None:
        classes = output.class_queries_logits.softmax(-1)[..., :-1]
        pixels = torch.einsum("bqc,bqhw->bhwc", classes, masks.sigmoid())
        return F.normalize(pixels.float(), p=1, dim=-1).clamp_min(1e-12).log()
    logits = getattr(output, "logits", None)
    if logits is None:
        return None
    return (logits.movedim(1, -1) if logits.ndim == 4 else logits).float().log_softmax(-1)


@dataclass
class Scores:
    """What `rank` found.

    Attributes:
        heads, neurons: for each layer (units,), at most 0; the more negative, the more important.
        head_macs, neuron_macs: for each layer, multiply-accumulates of one unit for one sample.
        attention_macs: the share of `head_macs` that grows with the square of the number of tokens.
        fixed_macs: of what is counted but never pruned: the patch embedding of an image model.
        tokens: for each layer (tokens,) of the image; empty for the first, and for all where tokens were not ranked.
        special_tokens: how many tokens a sample has besides.
    """

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]
    head_macs: list[float]
    neuron_macs: list[float]
    attention_macs: list[float]
    fixed_macs: float = 0.0
    tokens: list[torch.Tensor] = field(default_factory=list)
    special_tokens: int = 0

    @property
    def macs(self) -> float:
        """Of the whole model, for one sample."""
        return self.macs_of([len(scores) for scores in self.heads], [len(scores) for scores in self.neurons])

    def macs_of(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
        """Of a model with so many heads and neurons in each layer."""
        pairs = (*zip(heads, self.head_macs), *zip(neurons, self.neuron_macs))
        return self.fixed_macs + sum(number * macs for number, macs in pairs)

    def after_merging(self, merged: Sequence[int]) -> Scores:
        """The same with the operations that are left when so many tokens leave before each layer."""
        length = self.special_tokens + max(map(len, self.tokens))
        shares = [1 - gone / length for gone in accumulate(merged)]
        attention = [macs * share**2 for macs, share in zip(self.attention_macs, shares)]
        return replace(
            self,
            head_macs=[
                (macs - before) * share + after
                for macs, before, after, share in zip(self.head_macs, self.attention_macs, attention, shares)
            ],
            neuron_macs=[macs * share for macs, share in zip(self.neuron_macs, shares)],
            attention_macs=attention,
        )


def rank(
    model: Any,
    calibration: Batches,
    scoring: Scoring | None = None,
    samples: int = 128,
    sequence_length: float | None = None,
    tokens: bool = False,
) -> Scores:
    """Scores every head and every neuron, and every token of an image.

    It takes one forward pass of the layers above for each unit: minutes on a CPU for a small model, a GPU for BERT-base.

    Args:
        model: a model of a known family, with a head unless `scoring.loss_type` is "MMD".
        calibration: a batch of forward arguments, or several; labels are not used.
        scoring: the paper's by default.
        samples: how many samples of the calibration are used, counted in whole batches.
        sequence_length: tokens of a sample, for the operations; the batches' own by default, for texts without the padding.
        tokens: whether tokens are ranked; for ViT and DeiT. A token's importance is that of leaving it out from a layer on, by the
            relations between samples, as there is one less to compare.

    Raises:
        ValueError: a model that cannot be pruned, no samples, or features that are not finite.
    """
    scoring = scoring or Scoring()
    family, layers = prunable(model)
    batches = _first(calibration, samples)
    kinds = ["heads", "neurons"] + ["tokens"] * tokens
    protected = special_tokens(model) if tokens else 0
    losses: dict[str, list] = {kind: [] for kind in kinds}
    sizes = []
    training = model.training
    model.eval()
    try:
        with tqdm(desc="Scoring", unit="unit") as bar:
            for batch in batches:
                probe = _Probe(model, family, layers, batch, scoring)
                counts = {kind: [units(layer, branch_of(family, kind)) for layer in layers] for kind in kinds[:2]}
                if tokens:
                    counts["tokens"] = probe.count_tokens(protected)
                bar.total = len(batches) * sum(map(sum, counts.values()))
                for kind in kinds:
                    losses[kind].append(list(getattr(probe, kind)(counts[kind], bar.update)))
                sizes.append(probe.sizes)
    finally:
        model.train(training)
    # summed over batches, layer by layer
    summed = {kind: [tuple(map(sum, zip(*layer))) for layer in zip(*found)] for kind, found in losses.items()}
    return Scores(
        **{kind: _combined(found, scoring, kind) for kind, found in summed.items()},
        **_macs(sizes, family, layers, sequence_length),
        special_tokens=protected,
    )


@dataclass
class _Sizes:
    """What a batch tells about operations: samples, tokens that are no padding, what enters each linear layer, patch convolutions."""

    samples: int
    real_tokens: float | None
    entering: list[dict[str, torch.Size]]
    convolutions: float = 0.0


def _first(calibration: Batches, samples: int) -> list[dict[str, torch.Tensor]]:
    batches, count = [], 0
    for batch in [calibration] if isinstance(calibration, Mapping) else calibration or ():
        batch = {name: value for name, value in batch.items() if not name.endswith("labels")}
        size = next((len(value) for value in batch.values() if isinstance(value, torch.Tensor)), 0)
        if size and count < samples:
            batches.append(batch)
            count += size
    if not batches:
        raise ValueError("OPTIN needs a calibration: at least one batch of forward arguments with a sample in it")
    return batches


class _Probe:
    """A model, one batch, and what the untouched model makes of it."""

    @torch.no_grad()
    def __init__(self, model: Any, family: Family, layers: list[nn.Module], batch: dict[str, Any], scoring: Scoring):
        self.model, self.family, self.layers, self.scoring = model, family, layers, scoring
        device = next(model.parameters()).device
        self.batch = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        self.size = next(len(x) for x in batch.values() if isinstance(x, torch.Tensor))
        self.outputs: list[torch.Tensor] = [torch.empty(0)] * len(layers)
        self.is_tuple = [False] * len(layers)
        self.features: list[torch.Tensor | None] = [None] * len(layers)
        mask = self.batch.get("attention_mask")
        self.sizes = _Sizes(self.size, None if mask is None else mask.sum().item(), [{} for _ in layers])

        def see_output(number: int) -> Callable:
            def hook(module, args, output):
                self.is_tuple[number] = isinstance(output, tuple)
                self.outputs[number] = output[0] if isinstance(output, tuple) else output

            return hook

        def see_feature(number: int) -> Callable:
            def hook(module, args, output):
                self.features[number] = output.reshape(self.size, -1, output.shape[-1])

            return hook

        def see_shape(number: int, name: str) -> Callable:
            def hook(module, args):
                self.sizes.entering[number][name] = args[0].shape

            return hook

        def see_convolution(module, args, output):
            self.sizes.convolutions += output.numel() * module.weight[0].numel()

        handles = []
        for number, layer in enumerate(layers):
            handles.append(layer.register_forward_hook(see_output(number)))
            if (module := self.feature(number)) is not None:
                handles.append(module.register_forward_hook(see_feature(number)))
            for branch in (family.attention, family.mlp):
                if not is_gone(layer, branch):
                    for name in (*branch.inputs, branch.output):
                        handles.append(layer.get_submodule(name).register_forward_pre_hook(see_shape(number, name)))
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and "patch_embeddings" in name:
                handles.append(module.register_forward_hook(see_convolution))
        with _registered(handles):
            self.predictions = log_probabilities(self.run())
        if self.predictions is None and "KL" in scoring.loss_type:
            raise ValueError(
                f"loss_type='{scoring.loss_type}' compares logits, and {type(model).__name__} has no head; give a model with one, or "
                "loss_type='MMD'"
            )
        if not all(x.isfinite().all() for x in (*self.outputs, self.predictions) if x is not None):
            raise ValueError("The calibration leads to values that are not finite")

    def feature(self, number: int) -> nn.Module | None:
        """The module whose output is compared: as in the reference, the last linear layer of BERT's MLP, the norm before the attention
        in image models, the first linear layer of the MLP in decoders."""
        branch = self.family.mlp
        path = branch.output if self.family.post_norm else branch.inputs[0]
        if self.model.main_input_name == "pixel_values":
            path = self.family.attention.norm_in
        return part(self.layers[number], path)

    def count_tokens(self, protected: int) -> list[int]:
        """How many tokens can leave before each layer: none before the first"""
        lengths = {output.shape[1] for output in self.outputs}
        if len(lengths) > 1:
            raise ValueError(
                f"Tokens are ranked in a model that merges none yet; this one has {sorted(lengths)} of them"
            )
        return [0] + [lengths.pop() - protected] * (len(self.layers) - 1)

    def run(self, variants: int = 1, outputs: Sequence[torch.Tensor] = ()) -> Any:
        """The model on `variants` copies of the batch, one after the other; the first layers return `outputs` instead of what they compute.

        An output for the batch alone holds for every variant.
        """
        inputs = {name: self.repeated(x, variants) for name, x in self.batch.items()}
        if getattr(self.model.config, "use_cache", None):
            inputs["use_cache"] = False
        with _returning(self.layers, [self.repeated(x, variants) for x in outputs], self.is_tuple):
            return self.model(**inputs)

    def repeated(self, x: Any, variants: int) -> Any:
        if not isinstance(x, torch.Tensor) or x.shape[:1] != (self.size,):
            return x
        return x.repeat(variants, *[1] * (x.ndim - 1))

    def chunks(self, count: int) -> Iterator[range]:
        """The units in chunks of about `TOKENS_AT_ONCE` tokens"""
        step = max(1, TOKENS_AT_ONCE // self.outputs[0].shape[:-1].numel())
        for start in range(0, count, step):
            yield range(start, min(start + step, count))

    def measured(
        self, layer: int, variants: int, outputs: Sequence[torch.Tensor], last_layer: bool
    ) -> tuple[torch.Tensor, ...]:
        """(MMD, KL), each (variants,) and at most 0, of runs that differ from `layer` on."""
        end = len(self.layers) - 1
        mmd = torch.zeros(variants, device=outputs[0].device if outputs else self.outputs[0].device)
        times = {number: 1 for number in range(layer + 1, end + 1)}
        if layer == end:
            times[end] = last_layer + (self.scoring.loss_type == "MMD")
        handles = []

        def compare(number: int) -> Callable:
            def hook(module, args, output):
                mmd.sub_(times[number] * self.loss(number, output, variants))

            return hook

        if "MMD" in self.scoring.loss_type:
            for number in times:
                if self.features[number] is not None:
                    handles.append(self.feature(number).register_forward_hook(compare(number)))
        with _registered(handles):
            predictions = log_probabilities(self.run(variants, outputs))
        kl = torch.zeros_like(mmd)
        if "KL" in self.scoring.loss_type:
            kl = -logit_loss(self.predictions, predictions.unflatten(0, (variants, -1)), self.scoring.temperature)
        return mmd.cpu(), kl.cpu()

    def loss(self, number: int, output: torch.Tensor, variants: int) -> torch.Tensor:
        teacher = self.features[number]
        student = output.reshape(variants, self.size, -1, output.shape[-1])
        relations = self.scoring.relations if student.shape[2] == teacher.shape[1] else "samples"
        return manifold_loss(teacher, student, self.scoring.aggregate, relations)

    def heads(self, counts: list[int], update: Callable[[int], Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.masked(
            self.family.attention, counts, self.scoring.head_last_layer, self.scoring.leak_head_mask, update
        )

    def neurons(self, counts: list[int], update: Callable[[int], Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.masked(self.family.mlp, counts, self.scoring.neuron_last_layer, False, update)

    @torch.no_grad()
    def masked(
        self, branch: Branch, counts: list[int], last_layer: bool, leak: bool, update: Callable[[int], Any]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(MMD, KL) of every unit of a branch, layer by layer"""
        outputs = list(self.outputs)
        for number, (layer, count) in enumerate(zip(self.layers, counts)):
            losses = [(torch.zeros(0), torch.zeros(0))]
            for chunk in self.chunks(count):
                mask = torch.ones(len(chunk), 1, count, 1, device=outputs[0].device)
                mask[range(len(chunk)), 0, list(chunk)] = 0
                seen: list[torch.Tensor] = []

                def hide(module, args, mask=mask):
                    units = args[0].unflatten(-1, (mask.shape[2], -1))
                    masked = units.reshape(len(mask), -1, *units.shape[-2:]) * mask.to(units.dtype)
                    return (masked.view_as(args[0]),)

                def keep(module, args, output, seen=seen):
                    seen.append(output[0] if isinstance(output, tuple) else output)

                output = layer.get_submodule(branch.output)
                with _registered([output.register_forward_pre_hook(hide), layer.register_forward_hook(keep)]):
                    losses.append(self.measured(number, len(chunk), outputs[:number], last_layer))
                if leak and chunk.stop == count:
                    outputs[number] = seen[0][-self.size :]
                update(len(chunk))
            yield tuple(torch.cat(parts) for parts in zip(*losses))

    @torch.no_grad()
    def tokens(self, counts: list[int], update: Callable[[int], Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(MMD, KL) of every token of the image that leaves before a layer, layer by layer"""
        for number, count in enumerate(counts):
            losses = [(torch.zeros(0), torch.zeros(0))]
            for chunk in self.chunks(count):
                entering = self.outputs[number - 1]
                left_out = entering.shape[1] - count + torch.tensor(list(chunk))
                stays = torch.arange(entering.shape[1]) != left_out[:, None]  # (variants, tokens)
                variants = torch.stack([entering[:, row] for row in stays.to(entering.device)])
                outputs = [*self.outputs[: number - 1], variants.flatten(0, 1)]
                losses.append(self.measured(number, len(chunk), outputs, last_layer=True))
                update(len(chunk))
            yield tuple(torch.cat(parts) for parts in zip(*losses))


@contextmanager
def _registered(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _returning(
    layers: Sequence[nn.Module], outputs: Sequence[torch.Tensor], is_tuple: Sequence[bool]
) -> Iterator[None]:
    """The first layers return these outputs and compute nothing."""
    own = [layer.__dict__.get("forward") for layer, _ in zip(layers, outputs)]
    try:
        for layer, output, tuples in zip(layers, outputs, is_tuple):
            result = (output, None) if tuples else output
            layer.forward = lambda *args, result=result, **kwargs: result
        yield
    finally:
        for layer, forward in zip(layers, own):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _combined(losses: list[tuple[torch.Tensor, torch.Tensor]], scoring: Scoring, kind: str) -> list[torch.Tensor]:
    """The scores of all layers. KL is brought to a power of ten below MMD; the powers are remembered from unit to unit (reference)."""
    name = kind.removesuffix("s")
    prior, decay, last = (
        getattr(scoring, f"{name}_{factor}", 1) for factor in ("index_prior", "decay", "last_layer_decay")
    )
    scales: list[float] = []
    scores = []
    for number, (mmd, kl) in enumerate(losses):
        summed = []
        for features, logits in zip(mmd.double().tolist(), kl.double().tolist()):
            scale = sum(scales) / len(scales) if scales else 1.0
            if features < logits < 0:
                ratio = math.log10(-features) - math.log10(-logits)
                scale = 10.0 ** math.trunc(ratio - math.log10(scoring.lambda_contribution))
                scales.append(scale)
            summed.append(features + scale * logits)
        factor = decay * (last if number == len(losses) - 1 else 1)
        priors = torch.logspace(0, math.log10(prior), len(summed), dtype=torch.float64).flip(0)
        scores.append(torch.tensor(summed, dtype=torch.float64) * priors * factor)
    if not all(layer.isfinite().all() for layer in scores):
        raise ValueError("Scores are not finite: the calibration or the masked model leads to NaN or infinity")
    return scores


def costs_of(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`head_macs`, `neuron_macs`, `attention_macs` and `fixed_macs` of `Scores`, without scoring anything. The model is in eval mode."""
    family, layers = prunable(model)
    probe = _Probe(model, family, layers, *_first(batch, 1), Scoring(loss_type="MMD"))
    return _macs([probe.sizes], family, layers, None)


def _macs(
    sizes: list[_Sizes], family: Family, layers: list[nn.Module], sequence_length: float | None
) -> dict[str, Any]:
    """The operations in `Scores`."""
    samples = sum(size.samples for size in sizes)
    if sequence_length is None and all(size.real_tokens is not None for size in sizes):
        sequence_length = sum(size.real_tokens for size in sizes) / samples

    def tokens(number: int, name: str) -> float:
        return sequence_length or sum(size.entering[number][name][:-1].numel() for size in sizes) / samples

    heads, attentions, neurons = [], [], []
    for number, layer in enumerate(layers):
        head = attention = neuron = 0.0
        if count := units(layer, family.attention):
            queries, output = family.attention.inputs[0], family.attention.output
            for name in family.attention.inputs:
                head += tokens(number, name) * math.prod(widths(layer.get_submodule(name))) / count
            width, outputs = widths(layer.get_submodule(output))
            head += tokens(number, output) * width * outputs / count
            seen = [size.entering[number][family.attention.inputs[-1]][-2] for size in sizes]
            keys = sequence_length or sum(seen) / len(seen)
            attention = 2 * tokens(number, queries) * keys * width / count
        if count := units(layer, family.mlp):
            for name in (*family.mlp.inputs, family.mlp.output):
                neuron += tokens(number, name) * math.prod(widths(layer.get_submodule(name))) / count
            for name in family.mlp.per_unit:
                neuron += tokens(number, family.mlp.output) * layer.get_submodule(name).weight[0].numel()
        heads.append(head + attention)
        attentions.append(attention)
        neurons.append(neuron)
    return {
        "head_macs": heads,
        "neuron_macs": neurons,
        "attention_macs": attentions,
        "fixed_macs": sum(size.convolutions for size in sizes) / samples,
    }
