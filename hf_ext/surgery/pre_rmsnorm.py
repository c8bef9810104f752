"""Pre-RMSNorm and Pre-CRMSNorm: a Pre-LN model with RMSNorm in the place of LayerNorm, and the very same outputs.

    converted = convert_pre_ln(model)                               # a Surgical<Base>; save_pretrained and from_pretrained as usual
    narrower = convert_pre_ln(model, norm_variant="crms", fold_affine=True)
    plain = convert_pre_ln(model, keep_model_type=True)             # LayerNorm and the class as before, loadable without hf_ext

Every LayerNorm takes the mean off the residual stream that it reads, so the mean carries nothing: taken off once from everything that
writes to the stream, it leaves RMSNorm to do. No training follows, and outputs change by rounding alone.

Paper: Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers, arXiv 2305.14858. Reference:
ZixuanJiang/pre-rmsnorm-transformer (MIT). On purpose otherwise than there: it is a change to any model of `STREAMS`, not a model; norms may
keep weight and bias; the mean is taken off tied embeddings at run time; the last norm of a compressed model gives whole vectors out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.utils import logging

from hf_ext.layers import mean_free
from hf_ext.layers.fusion import check_folded
from hf_ext.layers.mean_free import CompressedNorm, ExpandingNorm, MeanFreeNorm, RecentredInput, RecentredOutput, expand

from . import Recipe, SurgicalMixin, apply, copy_as
from .streams import RAW_FIELDS, RAW_HEADS, REFUSED, RMS_FAMILIES, STREAMS, Stream

logger = logging.get_logger(__name__)

NormVariant = Literal["rms", "crms", "layernorm"]
Recentring = Literal["auto", "weights", "runtime"]
Place = tuple[nn.Module, str]  # a module and the name of an attribute
DROPOUTS = (
    "attention_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
)


@dataclass
class PreRMSNorm(Recipe):
    """RMSNorm, or its compressed form, for LayerNorm.

    Args:
        norm_variant: "rms"; "crms", where the stream is stored without its last channel; "layernorm", which recentres nothing.
        fold_affine: moves weight and bias of the layers' norms into the linear layers that read them. The last norm keeps its own.
        recenter_embeddings: "weights" takes the mean off the tables, "runtime" off their sum in every forward; "auto" is "runtime" where
            a table is tied to a head, which "weights" would change, or `train_recentered` is set.
        train_recentered: for "rms": weights stay as they are, and outputs lose their mean in every forward, so that training keeps the
            equivalence; `merge` ends it. Without it, a model that is trained on is one with RMSNorm ("crms" cannot lose its zero mean).

    Raises:
        ValueError: naming the field, its value and what is allowed, or why the model is not one to convert.
    """

    name = "pre_rmsnorm"
    norm_variant: NormVariant = "rms"
    fold_affine: bool = False
    recenter_embeddings: Recentring = "auto"
    train_recentered: bool = False

    def __post_init__(self):
        for field, allowed in (("norm_variant", NormVariant), ("recenter_embeddings", Recentring)):
            if getattr(self, field) not in get_args(allowed):
                raise ValueError(
                    f"PreRMSNorm.{field}={getattr(self, field)!r} is not one of {', '.join(get_args(allowed))}"
                )
        for field in ("fold_affine", "train_recentered"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"PreRMSNorm.{field}={getattr(self, field)!r} must be true or false")
        if self.train_recentered and (self.norm_variant != "rms" or self.recenter_embeddings == "weights"):
            raise ValueError(
                "PreRMSNorm.train_recentered=True goes with norm_variant='rms' and recentring at run time; got "
                f"norm_variant={self.norm_variant!r}, recenter_embeddings={self.recenter_embeddings!r}"
            )

    def rebuild(self, model: Any) -> None:
        if model_type(model) in RMS_FAMILIES:
            logger.warning(f"{type(model).__name__} has RMSNorm already: pre_rmsnorm leaves it as it is")
            return
        check_convertible(model)
        streams = [Parts(model, stream) for stream in streams_of(model)]
        tied = any(parts.stream.tied for parts in streams) and getattr(model.config, "tie_word_embeddings", False)
        if tied and self.recenter_embeddings == "weights":
            raise ValueError(
                "PreRMSNorm.recenter_embeddings='weights' would change the head that is tied to the embeddings; it has to be 'runtime'"
            )
        if self.recenter_embeddings == "auto":
            self.recenter_embeddings = "runtime" if tied or self.train_recentered else "weights"
        if self.norm_variant == "crms" and not all(parts.stream.compressible for parts in streams):
            raise ValueError(
                f"Layers of '{model_type(model)}' cannot work on a compressed stream: norm_variant must be 'rms'"
            )
        for parts in streams:
            parts.check()
        for parts in streams:
            self._convert(parts, centres=self.train_recentered and has_dropout(model.config))

    @torch.no_grad()
    def _convert(self, parts: Parts, centres: bool) -> None:
        for owner, name, norm, readers in parts.norms():
            folds = self.fold_affine and bool(readers)
            if folds:
                mean_free.fold_affine(norm, readers)
            if folds and self.norm_variant == "crms":
                for reader in readers:
                    mean_free.drop_last_input(reader)
            _put(owner, name, self._norm(norm, folds, centres))
        for owner, name, norm in parts.final():
            _put(owner, name, self._norm(norm, False, centres))
        if self.norm_variant == "layernorm":
            return
        compresses = self.norm_variant == "crms"
        parts.fold_scales()
        for output in parts.outputs():
            if self.train_recentered:
                mean_free.recentre_output(output)
                continue
            mean_free.recentre(output)
            if compresses:
                mean_free.drop_last_output(output)
        parts.recentre_start(self.recenter_embeddings == "runtime", compresses)

    def _norm(self, norm: nn.LayerNorm, folded: bool, centres: bool) -> nn.Module:
        if self.norm_variant == "layernorm":
            return mean_free.without_affine(nn.LayerNorm, norm) if folded else norm
        if self.norm_variant == "crms":
            return CompressedNorm(norm.eps) if folded else ExpandingNorm(norm.weight, norm.bias, norm.eps)
        made = mean_free.without_affine(MeanFreeNorm, norm) if folded else mean_free.mean_free(norm)
        if centres:
            made.centres_in_training = True
        return made


class Parts:
    """The modules of a model that a row of `STREAMS` names."""

    def __init__(self, model: Any, stream: Stream):
        self.model, self.stream = model, stream
        self.root = next((root for root in self._roots() if isinstance(find(root, stream.layers), nn.ModuleList)), None)

    def _roots(self) -> Iterator[Any]:
        for top in (self.model.base_model, self.model):
            yield from (place for name in self.stream.places if (place := find(top, name)) is not None)

    @property
    def layers(self) -> list[nn.Module]:
        return list(find(self.root, self.stream.layers))

    def norms(self) -> Iterator[tuple[nn.Module, str, nn.Module, list[nn.Module]]]:
        """Owner, attribute, norm and readers, for each norm of each layer"""
        for layer in self.layers:
            for path, names in self.stream.norms:
                if not isinstance(norm := find(layer, path), (NoneType, nn.Identity)):
                    yield *place_of(layer, path), norm, [r for name in names if (r := find(layer, name)) is not None]

    def final(self) -> Iterator[tuple[nn.Module, str, nn.Module]]:
        for path in self.stream.final:
            for root in (self.root, self.model.base_model, self.model):
                norm = find(root, path)
                if isinstance(norm, (nn.LayerNorm, ExpandingNorm)):
                    yield *place_of(root, path), norm
                    break

    def outputs(self) -> Iterator[nn.Module]:
        for layer in self.layers:
            yield from (output for path in self.stream.outputs if (output := find(layer, path)) is not None)

    def sources(self) -> list[Place]:
        paths = (path for path in self.stream.sources if find(self.root, path) is not None)
        return [place_of(self.root, path) for path in paths]

    def fold_scales(self) -> None:
        """Multiplies LayerScale into the layers before it."""
        for layer in self.layers:
            for path, output in self.stream.scales:
                scale, written = find(layer, path), find(layer, output)
                if isinstance(scale, torch.Tensor) and written is not None:
                    mean_free.scale_outputs(written, scale)
                    self._drop_scale(layer, path)

    @staticmethod
    def _drop_scale(layer: nn.Module, path: str) -> None:
        owner, _, name = path.rpartition(".")
        if owner:
            setattr(layer, owner, nn.Identity())
        else:
            delattr(layer, name)
            setattr(layer, name, 1.0)

    def recentre_start(self, runtime: bool, compresses: bool) -> None:
        """Takes the mean off what the stream begins with: at run time, or in the weights."""
        runtime = runtime or self.stream.always_recentred
        late = compresses and self.stream.keeps_width  # in the first layer, not before it
        if not runtime:
            for owner, name in self.sources():
                _edit_source(owner, name, mean_free.recentre, mean_free.recentre_table)
                if compresses and not late:
                    _edit_source(owner, name, mean_free.drop_last_output, mean_free.drop_last_entry)
        if late or (runtime and not self.starts()):
            mean_free.recentre_input(self.layers[0], compresses)
        elif runtime:
            for start in self.starts():
                mean_free.recentre_output(start, compresses)

    def starts(self) -> list[nn.Module]:
        """The modules whose outputs, summed, are the stream before the first layer; none where there are no such modules."""
        if self.stream.start:
            return [find(self.root, self.stream.start)]
        sources = [getattr(owner, name) for owner, name in self.sources()]
        return sources if all(isinstance(source, nn.Module) for source in sources) else []

    def expand_start(self) -> None:
        """The inverse of compression in `recentre_start`."""
        recentred = [start for start in self.starts() if isinstance(start, RecentredOutput)]
        hook = RecentredInput.of(self.layers[0])
        for part in (*recentred, *([hook] if hook else [])):
            part.compresses = False
        if not (hook or recentred or self.stream.keeps_width):
            for owner, name in self.sources():
                _edit_source(owner, name, mean_free.restore_last_output, mean_free.restore_last_entry)

    def check(self) -> None:
        """A ValueError where a module is not what can be converted."""
        kinds = (nn.LayerNorm, "a LayerNorm"), (mean_free.READERS, "linear"), (mean_free.WRITERS, "linear")
        sources = [source for owner, name in self.sources() if isinstance(source := getattr(owner, name), nn.Module)]
        found = (
            [norm for _, _, norm, _ in self.norms()],
            [reader for _, _, _, readers in self.norms() for reader in readers],
            [*self.outputs(), *sources],
        )
        if any(isinstance(output, RecentredOutput) for output in self.outputs()):
            raise ValueError(f"{type(self.model).__name__} was made with train_recentered: `merge` it first")
        for modules, (kind, wanted) in zip(found, kinds):
            for module in modules:
                if not isinstance(module, kind):
                    raise ValueError(
                        f"{type(self.model).__name__} has a {type(module).__name__} where pre_rmsnorm needs what is {wanted}: it was "
                        "changed already; apply pre_rmsnorm before the other change"
                    )
        if len(widths := {mean_free.outputs_of(writer) for writer in found[-1]}) > 1:
            raise ValueError(
                f"What writes to the stream of this {type(self.model).__name__} has several widths, {sorted(widths)}: its embeddings are "
                "projected"
            )
        if not self.stream.always_recentred and not self.sources():
            raise ValueError(
                f"In this {type(self.model).__name__} nothing linear writes to the stream before the layers"
            )


def find(root: Any, path: str) -> Any:
    """What stands at a dotted path of attributes and indices, None where there is nothing; the root itself for ""."""
    for name in path.split(".") if path else ():
        if root is not None and name.lstrip("-").isdigit():
            index = int(name)
            root = root[index] if -len(root) <= index < len(root) else None
        else:
            root = getattr(root, name, None)
    return root


def place_of(root: nn.Module, path: str) -> Place:
    owner, _, name = path.rpartition(".")
    return find(root, owner), name


def _edit_source(owner: nn.Module, name: str, layer: Callable, table: Callable) -> None:
    """`layer(source)` of a layer, `table(owner, name)` of a parameter or tensor"""
    source = getattr(owner, name)
    if isinstance(source, nn.Module):
        layer(source)
    else:
        table(owner, name)


def _put(owner: nn.Module, name: str, norm: nn.Module) -> None:
    setattr(owner, name, norm.train(owner.training))


def model_type(model: Any) -> str:
    return model.config.model_type.removeprefix("surgical_")


def streams_of(model: Any) -> list[Stream]:
    """The streams that the model has; a ValueError with the reason where it is none to convert."""
    kind = model_type(model)
    if kind in REFUSED:
        raise ValueError(f"pre_rmsnorm does not fit {type(model).__name__}: {REFUSED[kind]}")
    if kind not in STREAMS:
        raise ValueError(f"pre_rmsnorm is not known for the model type '{kind}'; it is for {', '.join(STREAMS)}")
    config = model.config
    for (field, value), reason in RAW_FIELDS.items():
        if getattr(config, field, None) is value and (field != "apply_layernorm" or "Backbone" in type(model).__name__):
            raise ValueError(f"pre_rmsnorm does not fit {type(model).__name__}: {reason}")
    name = type(model).__name__.removeprefix("Surgical")
    if RAW_HEADS.get(name) is True or getattr(config, str(RAW_HEADS.get(name)), False):
        raise ValueError(f"pre_rmsnorm does not fit {name}: its head reads hidden states without a norm")
    streams = [
        stream
        for stream in STREAMS[kind]
        if Parts(model, stream).root is not None
        and all(getattr(config, field, None) == value for field, value in stream.when)
    ]
    if not streams:
        raise ValueError(f"{type(model).__name__} has its layers at another place than in Transformers 5.23")
    return streams


def check_convertible(model: Any) -> None:
    """A ValueError where weights cannot be changed as they are now."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model carries adapters: `merge_and_unload()` them, then convert it")
    if getattr(model, "is_quantized", False):
        raise ValueError("Quantized weights cannot be recentred: convert and save the model, then load it quantized")
    if "disk" in (getattr(model, "hf_device_map", None) or {}).values():
        raise ValueError("Some weights are offloaded to disk: load the model without `device_map`, then convert it")
    if any(isinstance(module, (CompressedNorm, ExpandingNorm)) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is compressed already: `decompress` it first")
    check_folded(model)


def has_dropout(config: Any) -> bool:
    return any((getattr(config, field, 0.0) or 0.0) > 0 for field in DROPOUTS)


def convert_pre_ln(
    model: Any,
    norm_variant: NormVariant = "rms",
    fold_affine: bool = False,
    recenter_embeddings: Recentring = "auto",
    train_recentered: bool = False,
    keep_model_type: bool = False,
) -> Any:
    """The model with RMSNorm. The given one stays as it is and shares the tensors that do not change.

    Args:
        model: a Transformers model of `STREAMS`; one that has RMSNorm already is returned as it is, with a warning.
        norm_variant, fold_affine, recenter_embeddings, train_recentered: see `PreRMSNorm`.
        keep_model_type: for "rms" without folding: recentres the weights and keeps class, model type and LayerNorm, which computes the
            same of mean-free tokens. Anybody can load what is saved, and convert it anew; `Surgical<Base>.from_pretrained(folder,
            surgery=[{"name": "pre_rmsnorm"}])` loads it with RMSNorm at once, unless it is of a type that Transformers saves under older
            names (ViT and its kin). Where embeddings are tied they keep their mean.

    Raises:
        ValueError: fields that do not go together, or why the model is none to convert.
    """
    recipe = PreRMSNorm(norm_variant, fold_affine, recenter_embeddings, train_recentered)
    if model_type(model) in RMS_FAMILIES:
        logger.warning(f"{type(model).__name__} has RMSNorm already: it is returned as it is")
        return model
    if not keep_model_type:
        return apply(model, recipe)
    if norm_variant != "rms" or fold_affine or train_recentered or isinstance(model, SurgicalMixin):
        raise ValueError(
            "keep_model_type=True is for norm_variant='rms' without fold_affine and train_recentered, of a plain model"
        )
    plain = copy_as(model, deepcopy(model.config))
    converted = apply(model, recipe).state_dict()
    if problem := set(converted) ^ set(plain.state_dict()):
        raise ValueError(f"'{model_type(model)}' cannot keep its model type: {sorted(problem)} would be folded away")
    for name, parameter in list(plain.named_parameters()):
        owner, attribute = place_of(plain, name)
        setattr(owner, attribute, nn.Parameter(converted[name].clone(), parameter.requires_grad))
    plain.tie_weights()
    return plain


def _entry_of(model: Any, wanted: str, **fields: Any) -> dict[str, Any]:
    for entry in getattr(model.config, "surgery", None) or ():
        if entry["name"] == PreRMSNorm.name and all(entry[field] == value for field, value in fields.items()):
            return entry
    raise ValueError(f"{type(model).__name__} was not made with {wanted}")


@torch.no_grad()
def merge(model: Any) -> Any:
    """Ends `train_recentered`, in place: weights are recentred once and for all. Outputs stay equal up to rounding."""
    entry = _entry_of(model, "train_recentered", train_recentered=True)
    check_convertible(model)
    for parts in (Parts(model, stream) for stream in streams_of(model)):
        for output in parts.outputs():
            mean_free.leave_output(output)
            mean_free.recentre(output)
    for module in model.modules():
        if isinstance(module, MeanFreeNorm):
            module.__dict__.pop("centres_in_training", None)
    entry.update(train_recentered=False, recenter_embeddings="runtime")
    return model


@torch.no_grad()
def decompress(model: Any) -> Any:
    """The Pre-RMSNorm model, `d` channels wide, that a compressed one stands for. The given one stays as it is."""
    _entry_of(model, "norm_variant='crms'", norm_variant="crms")
    changed = copy_as(model, deepcopy(model.config))
    entry = _entry_of(changed, "norm_variant='crms'", norm_variant="crms")
    for parts in (Parts(changed, stream) for stream in streams_of(changed)):
        for output in parts.outputs():
            mean_free.restore_last_output(output)
        width = next(mean_free.outputs_of(output) for output in parts.outputs())
        for owner, name, norm, readers in parts.norms():
            if isinstance(norm, CompressedNorm):
                for reader in readers:
                    mean_free.restore_last_input(reader)
            _put(owner, name, mean_free.whole(norm, width))
        for owner, name, norm in parts.final():
            _put(owner, name, mean_free.whole(norm, width))
        parts.expand_start()
    entry.update(norm_variant="rms")
    return changed


def decompress_hidden_states(hidden_states: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
    """(..., d - 1) of a compressed model's stream -> (..., d), or each of a tuple. They equal the original's without their mean."""
    if isinstance(hidden_states, torch.Tensor):
        return expand(hidden_states)
    return tuple(expand(states) for states in hidden_states)


@torch.no_grad()
def recentre_adapters(model: Any) -> Any:
    """Makes LoRA that was trained on the original model fit the converted one, in place: what it adds to a stream loses its mean.

    Args:
        model: a `PeftModel` around a model with RMSNorm ("rms" without folding), before or after training.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for parts in (Parts(base, stream) for stream in streams_of(base)):
        for output in parts.outputs():
            for layer in getattr(output, "lora_B", {}).values():
                mean_free.recentre(layer)
    return model


def compress(model: Any, calibration: Any = None, **options: Any) -> Any:
    """`convert_pre_ln(model, **options)`, for `hf_ext.surgery.compress`; it needs no calibration."""
    return convert_pre_ln(model, **options)


__all__ = [
    "PreRMSNorm",
    "compress",
    "convert_pre_ln",
    "decompress",
    "decompress_hidden_states",
    "merge",
    "recentre_adapters",
]
