"""Test-time adaptation: a classifier that goes on adapting to the unlabelled batches that it classifies.

    adapter = TestTimeAdapter(model, "tent", lr=1e-3)       # any classifier of Transformers, or one with a label shift adapter
    for batch in stream:
        logits = adapter(pixel_values=batch).logits
    adapter.reset()                                         # the model is as it was

Methods, each in a class of its own below: Tent (arXiv 2006.10726, DequanWang/tent), norm (batch statistics; the same repository), IABN
and NOTE (arXiv 2208.05117, TaesikGong/NOTE), LAME (arXiv 2201.05718, from its equations), prior correction (Saerens et al., 2002), and
none. With a model of `hf_ext.adapters.label_shift_adapter` the running label distribution is fed to the adapter (arXiv 2308.08810).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterPreTrainedModel
from hf_ext.adapters.label_shift_adapter.distributions import (
    as_distribution,
    expectation_maximization,
    moved_distribution,
    prior_correction,
)
from hf_ext.layers.classifiers import classify_with_features, find_classifiers
from hf_ext.layers.iabn import convert_batch_norms

Inputs = Mapping[str, Any]
TINIEST = 1e-30  # probability that still has a logarithm
OPTIMIZERS = ("Adam", "SGD")


@dataclass
class TestTimeOutput(ModelOutput):
    """
    `logits` (B, K), without gradients. `label_distribution` (K,): the running estimate, this batch included; None where nothing estimates.
    """

    __test__ = False

    logits: torch.Tensor | None = None
    label_distribution: torch.Tensor | None = None


class Adaptation:
    """A method. Its fields are its options; it is given a model to change and tells how to undo that.

    `prepare` runs before the first batch, with a stack that takes back what it registers there. A call takes the model's inputs and
    returns (B, K) logits.
    """

    needs_gradients = False

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        self.model = model
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
        model.requires_grad_(False)
        model.eval()

    def classify(self, inputs: Inputs) -> torch.Tensor:
        """(B, K) logits of the model as it stands."""
        return self.model(**inputs).logits

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        return self.classify(inputs)


@dataclass
class NoAdaptation(Adaptation):
    """The model as it is, in eval mode."""


@dataclass
class BatchStatistics(Adaptation):
    """Batch norms use the statistics of the batch; nothing is learned.

    Args:
        momentum: of the running statistics, which go on although they are not used.
        reset_stats: forget the source's first.
        no_stats: keep none.
    """

    momentum: float = 0.1
    reset_stats: bool = False
    no_stats: bool = False

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        super().prepare(model, undo)
        for norm in norms_of(model, (_BatchNorm,)):
            norm.train()
            _set(undo, norm, momentum=self.momentum)
            if self.no_stats:
                forget_statistics(norm, undo)
            elif norm.running_mean is not None:
                _keep(undo, norm.running_mean, norm.running_var, norm.num_batches_tracked)
                if self.reset_stats:
                    norm.reset_running_stats()


@dataclass
class Tent(Adaptation):
    """Entropy minimisation of the batch by the scales and shifts of the norms, which use batch statistics (Tent, section 3).

    The logits are those of the last step's forward pass, before its update.

    Args:
        optimizer, lr, beta, momentum, dampening, nesterov, weight_decay: "Adam" uses the first beta, "SGD" the next three.
        steps: for each batch.
        episodic: begin anew for each batch.
        norm_types: what is adapted, as classes or their names: batch norms of images alone in the original, "LayerNorm" or "GroupNorm" for
            models that have no others.
    """

    optimizer: str = "Adam"
    lr: float = 1e-3
    beta: float = 0.9
    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = True
    weight_decay: float = 0.0
    steps: int = 1
    episodic: bool = False
    norm_types: tuple[type | str, ...] = (nn.BatchNorm2d,)

    needs_gradients = True

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be 1 or more")
        if isinstance(self.norm_types, (str, type)):
            self.norm_types = (self.norm_types,)

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        super().prepare(model, undo)
        norms = norms_of(model, self.norm_types)
        self.parameters = trained_affine(norms, undo)
        model.train()
        for norm in norms:
            if isinstance(norm, _BatchNorm):
                forget_statistics(norm, undo)
        self.initial = [parameter.detach().clone() for parameter in self.parameters]
        self.updates = self.new_optimizer()

    def new_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer == "Adam":
            settings = {"betas": (self.beta, 0.999)}
        else:
            settings = {"momentum": self.momentum, "dampening": self.dampening, "nesterov": self.nesterov}
        kind = getattr(torch.optim, self.optimizer)
        return kind(self.parameters, lr=self.lr, weight_decay=self.weight_decay, **settings)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        if self.episodic:
            with torch.no_grad():
                for parameter, initial in zip(self.parameters, self.initial):
                    parameter.copy_(initial)
            self.updates = self.new_optimizer()
        for _ in range(self.steps):
            logits = self.classify(inputs)
            wide = logits.float()
            minimise(-(wide.softmax(-1) * wide.log_softmax(-1)).sum(-1).mean(), self.updates)
        return logits


@dataclass
class InstanceAware(Adaptation):
    """Batch norms take what is unusual about an instance into account (`InstanceAwareBatchNorm`); nothing is learned.

    Args:
        k: how many standard errors are taken for chance.
        skip_threshold: with so many positions or fewer, a batch norm stays plain.
    """

    k: float = 4.0
    skip_threshold: int = 1

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        super().prepare(model, undo)
        norms_of(model, (_BatchNorm,))  # or say that there are none
        for name in convert_batch_norms(model, self.k, self.skip_threshold):
            undo.callback(model.set_submodule, name, model.get_submodule(name)._bn)


class BalancedReservoir:
    """Prediction-balanced reservoir sampling (NOTE, section 3.2): a memory of a stream in which classes are as equal as can be.

    Args:
        capacity: samples that it holds.
    """

    def __init__(self, capacity: int, seed: int = 0):
        self.capacity, self.random = capacity, random.Random(seed)
        self.samples: dict[int, list[Any]] = {}
        self.seen: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.samples.values()))

    def add(self, sample: Any, label: int) -> None:
        """A sample and its predicted class."""
        self.seen[label] = self.seen.get(label, 0) + 1
        own = self.samples.setdefault(label, [])
        if len(self) >= self.capacity:
            most = max(map(len, self.samples.values()))
            largest = [label for label, held in self.samples.items() if len(held) == most]
            if label in largest:  # reservoir sampling within the class
                if self.random.random() > len(own) / self.seen[label]:
                    return
                leaves = own
            else:
                leaves = self.samples[self.random.choice(largest)]
            leaves.pop(self.random.randrange(len(leaves)))
        own.append(sample)

    def content(self) -> list[Any]:
        return [sample for held in self.samples.values() for sample in held]


@dataclass
class Note(InstanceAware):
    """IABN, and after each `update_every` samples entropy minimisation on a memory with balanced classes (NOTE).

    Samples are classified one by one in effect, each before the update that it takes part in.

    Args:
        memory_size, update_every, batch_size, epochs: of the memory, and of what is learned from it at a time.
        bn_momentum: of the batch norms' running statistics, which only the memory moves.
        lr: of Adam, for their scales and shifts.
        temperature: that logits are divided by for the entropy.
        seed: of the memory and of the order in which it is learned from.
    """

    memory_size: int = 64
    update_every: int = 64
    batch_size: int = 64
    epochs: int = 1
    bn_momentum: float = 0.01
    lr: float = 1e-4
    temperature: float = 1.0
    seed: int = 0

    needs_gradients = True

    def __post_init__(self):
        for name in ("memory_size", "update_every", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        super().prepare(model, undo)
        norms = norms_of(model, (_BatchNorm,))
        self.updates = torch.optim.Adam(trained_affine(norms, undo), lr=self.lr)
        for norm in norms:
            _set(undo, norm, momentum=self.bn_momentum)
            if norm.running_mean is not None:
                _keep(undo, norm.running_mean, norm.running_var, norm.num_batches_tracked)
        self.memory = BalancedReservoir(self.memory_size, self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.waiting = self.update_every

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        size = batch_size(inputs)
        logits, start = [], 0
        while start < size:
            stop = min(start + self.waiting, size)
            logits.append(self._remember(rows(inputs, start, stop, size)))
            self.waiting -= stop - start
            if not self.waiting:
                self.waiting = self.update_every
                self._learn()
            start = stop
        return torch.cat(logits)

    @torch.no_grad()
    def _remember(self, inputs: Inputs) -> torch.Tensor:
        logits = self.classify(inputs)
        count = len(logits)
        for index, label in enumerate(logits.argmax(-1).tolist()):
            self.memory.add(rows(inputs, index, index + 1, count), label)
        return logits

    def _learn(self) -> None:
        self.model.train()
        samples = self.memory.content()
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(samples), generator=self.generator).split(self.batch_size):
                if len(chosen) == 1:  # no statistics over one sample
                    self.model.eval()
                probabilities = (self.classify(joined([samples[i] for i in chosen])) / self.temperature).softmax(-1)
                minimise(-(probabilities * (probabilities + 1e-6).log()).mean(), self.updates)
        self.model.eval()


@dataclass
class Lame(Adaptation):
    """Laplacian adjusted maximum-likelihood estimation: neighbours should agree; only the predictions change (LAME, section 3).

    The logits are log probabilities.

    Args:
        affinity: "kNN", "rbf" or "linear".
        knn: neighbours; for "rbf" the one whose distance sets the width.
        force_symmetry: make neighbourhood mutual by the mean of both directions.
        bound_lambda: weight of the neighbours.
        max_steps: of the fixed-point iteration.
    """

    affinity: str = "kNN"
    knn: int = 5
    force_symmetry: bool = False
    bound_lambda: float = 1.0
    max_steps: int = 100

    def __post_init__(self):
        if self.affinity not in AFFINITIES:
            raise ValueError(f"affinity={self.affinity!r} is not one of {', '.join(AFFINITIES)}")
        if self.knn < 1:
            raise ValueError(f"knn={self.knn} must be 1 or more")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be 1 or more")

    def prepare(self, model: PreTrainedModel, undo: ExitStack) -> None:
        super().prepare(model, undo)
        prefix = "" if inner(model) is model else "base."
        self.classifier_names = [prefix + name for name in find_classifiers(inner(model))]

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        outputs, features = classify_with_features(self.model, self.classifier_names, inputs)
        affinities = self.affinities(features.float())
        return self.refine(outputs.logits.float().softmax(-1), affinities).clamp_min(TINIEST).log()

    def affinities(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features of a batch -> (N, N), how much one sample listens to another."""
        w = AFFINITIES[self.affinity](F.normalize(features, dim=-1), self.knn)
        return (w + w.mT) / 2 if self.force_symmetry else w

    def refine(self, probabilities: torch.Tensor, affinities: torch.Tensor) -> torch.Tensor:
        """(N, K), (N, N) -> (N, K): the minimum of sum(unary Y - Y W Y + Y log Y), by its concave-convex bound (equation 6)."""
        unary = -(probabilities + 1e-10).log()
        y, energy = (-unary).softmax(-1), None
        for step in range(self.max_steps):
            y = (self.bound_lambda * affinities @ y - unary).softmax(-1)
            pairwise = self.bound_lambda * affinities @ y
            previous, energy = energy, (y * (unary - pairwise + y.clamp_min(TINIEST).log())).sum()
            if step > 1 and (energy - previous).abs() <= 1e-8 * previous.abs():
                break
        return y


def knn_affinity(features: torch.Tensor, knn: int) -> torch.Tensor:
    """1 for each of the nearest others."""
    distances = torch.cdist(features, features)
    nearest = distances.topk(min(knn + 1, len(features)), largest=False).indices[:, 1:]
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def rbf_affinity(features: torch.Tensor, knn: int) -> torch.Tensor:
    """exp(-distance^2 / (2 sigma^2)), sigma the mean distance of the knn-th nearest, a sample itself being the first."""
    distances = torch.cdist(features, features)
    sigma = distances.topk(min(knn, len(features)), largest=False).values[:, -1].mean()
    return (-distances.square() / (2 * sigma.square()).clamp_min(TINIEST)).exp()


def linear_affinity(features: torch.Tensor, knn: int) -> torch.Tensor:
    """Cosines."""
    return features @ features.mT


AFFINITIES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "kNN": knn_affinity,
    "rbf": rbf_affinity,
    "linear": linear_affinity,
}


@dataclass
class PriorCorrection(Adaptation):
    """Bayes' rule for another label distribution: logits + log target - log source. It changes nothing else, and needs no adapter.

    Args:
        target_distribution: (K,), where it is known; None: the running estimate.
    """

    target_distribution: torch.Tensor | None = None
    distribution: LabelDistribution | None = field(default=None, init=False)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        return prior_correction(self.classify(inputs), self.distribution.source, self.distribution.current)


METHODS: dict[str, type[Adaptation]] = {
    "none": NoAdaptation,
    "norm": BatchStatistics,
    "tent": Tent,
    "iabn": InstanceAware,
    "note": Note,
    "lame": Lame,
    "prior_correction": PriorCorrection,
}


class LabelDistribution:
    """The running estimate of how labels are distributed.

    Args:
        source: (K,), under which the classifier was trained.
        current: (K,), the estimate, changed in place.
        momentum: share of the newest batch.
        estimator: "mean" of the probabilities, or "em": the batch's most likely distribution (Saerens et al., 2002).
        tau: how much of log current - log source the logits hold.
    """

    def __init__(
        self, source: torch.Tensor, current: torch.Tensor, momentum: float, estimator: str = "mean", tau: float = 1.0
    ):
        self.source, self.current, self.momentum, self.estimator, self.tau = source, current, momentum, estimator, tau

    @torch.no_grad()
    def observe(self, logits: torch.Tensor) -> None:
        """Moves the estimate by the (B, K) logits of a batch, which were computed for it as it stands."""
        current, logits = self.current.float(), logits.float()
        if self.estimator == "em":
            source = self.source.float()
            newest = expectation_maximization(logits + self.tau * (source.log() - current.log()), source)
        else:
            newest = logits.softmax(-1).mean(0)
        self.current.copy_(moved_distribution(current, newest.to(current.device), self.momentum))

    def reset(self) -> None:
        self.current.fill_(1 / self.current.numel())


class TestTimeAdapter:
    """Classifies the batches of a stream while it adapts to them.

    The model is changed in place from the first batch on, until `reset`.

    Args:
        model: any classifier of Transformers, or one with a label shift adapter.
        method: a key of `METHODS`, or an instance of one of their classes.
        label_shift: whether the model's adapter is told a running estimate of the label distribution; None: where the model has an adapter.
            False leaves the adapter out.
        update: whether the estimate moves "after" a batch is classified, or "before", by a pass of its own.
        estimator: "mean" of the probabilities, or "em".
        estimate_momentum: share of the newest batch in the estimate; the adapter's own configuration's, or 0.1, when None.
        source_distribution: (K,) shares or counts, for "prior_correction" on a model without adapter.
        options: fields of the method's class.

    Raises:
        ValueError: an unknown method or option, nothing in the model that the method could adapt, or a distribution that is missing.
    """

    __test__ = False

    def __init__(
        self,
        model: PreTrainedModel,
        method: str | Adaptation = "tent",
        label_shift: bool | None = None,
        update: Literal["after", "before"] = "after",
        estimator: Literal["mean", "em"] = "mean",
        estimate_momentum: float | None = None,
        source_distribution: torch.Tensor | None = None,
        **options: Any,
    ):
        _choose("update", update, ("after", "before"))
        _choose("estimator", estimator, ("mean", "em"))
        if estimate_momentum is not None and not 0 < estimate_momentum <= 1:
            raise ValueError(f"estimate_momentum={estimate_momentum} must be above 0 and at most 1")
        has_adapter = isinstance(model, LabelShiftAdapterPreTrainedModel)
        if label_shift and not has_adapter:
            raise ValueError(
                f"{type(model).__name__} has no label shift adapter: make one with LabelShiftAdapterFor...Classification.from_base"
            )
        self.method = _method(method, options)
        self.update = update
        corrects = isinstance(self.method, PriorCorrection)
        adapts = has_adapter and label_shift is not False and not corrects
        self.model = model.base if has_adapter and not adapts else model
        self.distribution = None
        if adapts or corrects:
            self.distribution = _distribution(model, source_distribution, estimate_momentum, estimator)
        self.fixed = corrects and self.method.target_distribution is not None
        if corrects:
            self.method.distribution = self.distribution
        if self.fixed:
            target = as_distribution(self.method.target_distribution, model.config.num_labels)
            self.distribution.current = target.to(self.distribution.source.device)
        self._undo: ExitStack | None = None
        with ExitStack() as undo:  # what cannot be adapted is refused here, not at the first batch
            self.method.prepare(self.model, undo)

    def __call__(self, *args: torch.Tensor, **inputs: Any) -> TestTimeOutput:
        """Logits of a batch, and a step of adaptation.

        Args:
            args: the model's main input, where it is not given by name.
            inputs: the model's forward arguments, without labels.

        Raises:
            ValueError: labels, no inputs, or inference mode with a method that learns.
        """
        inputs = self._inputs(args, inputs)
        if self._undo is None:
            self._undo = ExitStack()
            self.method.prepare(self.model, self._undo)
        moves = self.distribution is not None and not self.fixed
        if moves and self.update == "before":
            with torch.no_grad():
                self._observe(inputs)
        with torch.set_grad_enabled(self.method.needs_gradients):
            logits = self.method(inputs).detach()
        if moves and self.update == "after":
            self.distribution.observe(logits)
        current = None if self.distribution is None else self.distribution.current.clone()
        return TestTimeOutput(logits=logits, label_distribution=current)

    def _inputs(self, args: tuple[torch.Tensor, ...], inputs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > 1 or "labels" in inputs:
            raise ValueError("Give the model's inputs by name, and no `labels`: nothing tells them at test time")
        if self.method.needs_gradients and torch.is_inference_mode_enabled():
            raise ValueError(f"{type(self.method).__name__} learns, which torch.inference_mode() does not allow")
        main = inner(self.model).main_input_name
        inputs = {**dict(zip((main,), args)), **inputs}
        if batch_size(inputs) < 1:
            raise ValueError(f"There is no batch in {', '.join(inputs) or 'nothing'}; expected `{main}`")
        return inputs

    def _observe(self, inputs: Inputs) -> None:
        logits = self.method.classify(inputs)
        if isinstance(self.method, PriorCorrection):
            logits = prior_correction(logits, self.distribution.source, self.distribution.current)
        self.distribution.observe(logits)

    def reset(self) -> None:
        """The model is as it was before the first batch, and the estimate of the label distribution uniform."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None
        if self.distribution is not None and not self.fixed:
            self.distribution.reset()


def _method(method: str | Adaptation, options: dict[str, Any]) -> Adaptation:
    if isinstance(method, Adaptation):
        if options:
            raise ValueError(f"Give {type(method).__name__} its options where you make it: {', '.join(options)}")
        return method
    _choose("method", method, METHODS)
    kind = METHODS[method]
    known = [option.name for option in fields(kind) if option.init]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"'{method}' has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return kind(**options)


def _choose(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _distribution(
    model: PreTrainedModel, source: torch.Tensor | None, momentum: float | None, estimator: str
) -> LabelDistribution:
    if isinstance(model, LabelShiftAdapterPreTrainedModel):
        if source is not None:
            raise ValueError("The model holds its `source_distribution`; change it with `set_source_distribution`")
        momentum = model.config.momentum if momentum is None else momentum
        return LabelDistribution(
            model.source_distribution, model.label_distribution, momentum, estimator, model.config.tau
        )
    if source is None:
        raise ValueError(f"{type(model).__name__} does not tell its `source_distribution`: give the classes' counts")
    source = as_distribution(source, model.config.num_labels).to(model.device)
    current = torch.full_like(source, 1 / source.numel())
    return LabelDistribution(source, current, 0.1 if momentum is None else momentum, estimator)


def inner(model: PreTrainedModel) -> PreTrainedModel:
    """The classifier under a label shift adapter, or the model itself."""
    return model.base if isinstance(model, LabelShiftAdapterPreTrainedModel) else model


def norms_of(model: nn.Module, types: tuple[type | str, ...]) -> list[nn.Module]:
    """The modules of `model` that are of one of the types, given as classes or their names.

    Raises:
        ValueError: there are none; the message lists the norms that there are.
    """
    classes, names = tuple(t for t in types if isinstance(t, type)), {t for t in types if isinstance(t, str)}
    found = [
        m for m in model.modules() if isinstance(m, classes) or names & {base.__name__ for base in type(m).__mro__}
    ]
    if not found:
        there = sorted({type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__})
        wanted = ", ".join(sorted(names | {kind.__name__.lstrip("_") for kind in classes}))
        raise ValueError(
            f"{type(inner(model)).__name__} has no {wanted} to adapt, but {', '.join(there) or 'no norms at all'}; Tent takes others as "
            f'`norm_types=("{there[0] if there else "LayerNorm"}",)`'
        )
    return found


def trained_affine(norms: list[nn.Module], undo: ExitStack) -> list[nn.Parameter]:
    """The norms' scales and shifts, which will learn until undone."""
    found = [norm._parameters.get(name) for norm in norms for name in ("weight", "bias")]
    parameters = [parameter for parameter in found if parameter is not None]
    if not parameters:
        raise ValueError("The norms of the model have no weight and bias that could adapt")
    _keep(undo, *parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def forget_statistics(norm: _BatchNorm, undo: ExitStack) -> None:
    """A batch norm that always uses the batch."""
    _set(undo, norm, track_running_stats=False, running_mean=None, running_var=None)


def minimise(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _set(undo: ExitStack, target: nn.Module, **attributes: Any) -> None:
    for name, value in attributes.items():
        undo.callback(setattr, target, name, getattr(target, name))
        setattr(target, name, value)


def _keep(undo: ExitStack, *tensors: torch.Tensor | None) -> None:
    """Gives the tensors their present values back when undone."""

    def restore(tensor: torch.Tensor, value: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.copy_(value)

    for tensor in tensors:
        if tensor is not None:
            undo.callback(restore, tensor, tensor.detach().clone())


def batch_size(inputs: Inputs) -> int:
    return next((value.shape[0] for value in inputs.values() if torch.is_tensor(value) and value.ndim), 0)


def rows(inputs: Inputs, start: int, stop: int, size: int) -> dict[str, Any]:
    """Some samples of a batch of `size`."""

    def of_batch(value: Any) -> bool:
        return torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == size

    return {name: value[start:stop] if of_batch(value) else value for name, value in inputs.items()}


def joined(samples: list[Inputs]) -> dict[str, Any]:
    """Samples as a batch.

    Raises:
        ValueError: they differ in shape, such as texts that were padded in different batches.
    """
    first = samples[0]
    shapes = {name: {tuple(s[name].shape[1:]) for s in samples} for name, x in first.items() if torch.is_tensor(x)}
    if uneven := [name for name, found in shapes.items() if len(found) > 1]:
        raise ValueError(f"NOTE's memory needs samples of one shape; {uneven[0]} had {sorted(shapes[uneven[0]])}")
    return {name: torch.cat([s[name] for s in samples]) if name in shapes else x for name, x in first.items()}


__all__ = [
    "METHODS",
    "BatchStatistics",
    "InstanceAware",
    "Lame",
    "NoAdaptation",
    "Note",
    "PriorCorrection",
    "Tent",
    "TestTimeAdapter",
    "TestTimeOutput",
]
