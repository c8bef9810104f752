"""Changes to models that exist already, stored in config.json and restored by plain `AutoModelFor*.from_pretrained`.

    smaller = apply(model, LlmDrop(attention=[21, 22, 25]))     # a SurgicalLlamaForCausalLM
    smaller = compress(model, ["llm_drop:attention=8", "pre_rmsnorm"], calibration=batches)     # chosen by a calibration
    smaller.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)                # the changed model, alone or in 8-bit, sharded, with adapters

A recipe changes modules. `Surgical<Base>` is the base class with a list of recipes: its `__init__` builds the base and lets each recipe
rebuild it, in order, so recipes compose. One factory makes the classes for every model type of Transformers, when they are first asked
for; what a recipe needs to know of a model's layers is in `FAMILIES`, or in a table of its own.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any, ClassVar

from hf_ext.registry import register_lazily, when_imported

PREFIX = "Surgical"
# module of this package -> recipe class
RECIPES = {
    "fusegpt": "FuseGPT",
    "llm_drop": "LlmDrop",
    "optin": "Optin",
    "pre_rmsnorm": "PreRMSNorm",
    "prenorm_reference": "PrenormReference",
    "repbn": "RepBN",
    "spt": "SPT",
}


@dataclass
class Recipe:
    """One change. Fields are JSON; `name` is the module that defines the recipe."""

    name: ClassVar[str]
    # whether it reads or changes the weights of linear layers, which must then be whole
    needs_weights: ClassVar[bool] = True

    def rebuild(self, model: Any) -> None:
        """Changes `model` (base or with a head, real or on the meta device) in place. Raises ValueError when it does not fit."""
        raise TypeError(f"{type(self).__name__} does not say how to rebuild a model")

    def renumbered(self, kept: list[int]) -> Recipe | None:
        """The recipe for the model when only these of its layers are left, None where it has nothing more to do.

        Recipes that name layers override it.
        """
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name} | asdict(self)


def recipe_from(entry: dict[str, Any]) -> Recipe:
    """The recipe that a `surgery` entry of config.json describes."""
    fields = dict(entry)
    name = fields.pop("name", None)
    if name not in RECIPES:
        raise ValueError(f"config.json names the surgery '{name}'; this version knows {sorted(RECIPES)}")
    return getattr(import_module(f"{__name__}.{name}"), RECIPES[name])(**fields)


def rebuild(model: Any, recipe: Recipe) -> None:
    """One recipe on a model, in place."""
    from hf_ext.layers.fusion import check_folded

    if recipe.needs_weights:
        check_folded(model)
    recipe.rebuild(model)


class SurgicalMixin:
    """Builds the base model, then lets each recipe of `config.surgery` rebuild it."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        adopt(self)
        for entry in config.surgery:
            rebuild(self, recipe_from(entry))


def adopt(model: Any) -> None:
    """Makes the model surgical, and the base model inside it.

    Not the outer one alone: Transformers saves some of its classes under older names, wherever they are, and `Trainer` does not find
    those again on a resume.
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.config is model.config and not isinstance(part, SurgicalMixin):
            part.__class__ = surgical_class(type(part))
            _CAN_RECORD_REGISTRY[part] = part._can_record_outputs  # as `PreTrainedModel.__init__` does for its class


def release(model: Any) -> Any:
    """Takes back what `adopt` did, in place: the model as its base class, for a changed model that has become a plain one again."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    for part in model.modules():
        if isinstance(part, SurgicalMixin):
            part.__class__ = type(part).__mro__[2]
            _CAN_RECORD_REGISTRY[part] = part._can_record_outputs
    return model


@cache
def surgical_config(model_type: str) -> type:
    """`Surgical<Base>Config` for a base model type, registered with every Auto class that knows the base."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        raise ValueError(f"Surgery is for the model types of Transformers; '{model_type}' is not one of them")
    base = CONFIG_MAPPING[model_type]
    body = {
        "__module__": __name__,
        "__qualname__": PREFIX + base.__name__,
        "__doc__": f'{base.__name__} with `surgery`, the ordered list of changes as dicts with a "name".',
        "__annotations__": {"surgery": "list[dict] | None"},
        "model_type": f"surgical_{model_type}",
        "surgery": None,
        "__post_init__": _config_post_init(base),
    }
    config_class = type(base)(PREFIX + base.__name__, (base,), body)
    when_imported("transformers.models.auto.modeling_auto", partial(_register_models, model_type, config_class))
    return config_class


def _config_post_init(base: type) -> Any:
    def __post_init__(self, **kwargs):
        base.__post_init__(self, **kwargs)
        self.surgery = [recipe_from(entry).to_dict() for entry in self.surgery or ()]

    return __post_init__


def _register_models(model_type: str, config_class: type, modeling_auto: Any) -> None:
    for mapping in vars(modeling_auto).values():
        if isinstance(mapping, modeling_auto._LazyAutoMapping) and model_type in mapping._model_mapping:
            names = mapping._model_mapping[model_type]
            name = names if isinstance(names, str) else names[0]
            register_lazily(mapping, config_class, partial(__getattr__, PREFIX + name))


@cache
def surgical_class(base: type) -> type:
    """`Surgical<Base>` for a Transformers model class such as `LlamaForCausalLM`."""
    body = {
        "__module__": __name__,
        "__qualname__": PREFIX + base.__name__,
        "__doc__": f"{base.__name__} after the changes listed in `config.surgery`.",
        "config_class": surgical_config(base.config_class.model_type),
    }
    return type(base)(PREFIX + base.__name__, (SurgicalMixin, base), body)


def apply(model: Any, *recipes: Recipe) -> Any:
    """The model after the recipes, as a `Surgical<Base>`.

    The given model stays as it is; the two share the tensors that no recipe touches.

    Args:
        model: a Transformers model, or one that was changed already.
        recipes: the changes, in order.
    """
    if isinstance(model, SurgicalMixin):
        config = copy.deepcopy(model.config)
    else:
        fields = model.config.to_dict()
        config = surgical_config(fields.pop("model_type")).from_dict(fields)
        config._attn_implementation = model.config._attn_implementation
    changed = copy_as(model, config)
    adopt(changed)
    for recipe in recipes:
        rebuild(changed, recipe)
        config.surgery.append(recipe.to_dict())
    return changed


def copy_as(model: Any, config: Any) -> Any:
    """A copy with another configuration that shares the tensors."""
    import torch

    shared = {
        id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if isinstance(tensor, torch.Tensor)
    }
    copied = copy.deepcopy(model, memo=shared | {id(model.config): config})
    # what a file of the original called its weights: they would be saved under names that are not known to another type
    copied.__dict__.pop("_weight_conversions", None)
    return copied


def register() -> None:
    """Makes `surgical_*` model types known to `AutoConfig`; the classes are made when they are first asked for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for model_type in CONFIG_MAPPING_NAMES:
        register_lazily(CONFIG_MAPPING, f"surgical_{model_type}", partial(surgical_config, model_type))
    when_imported("peft.utils.constants", _register_adapter_targets)


def _register_adapter_targets(constants: Any) -> None:
    """PEFT's default target modules of the base hold for the changed model."""
    for name, targets in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(targets, dict):
            targets.update({f"surgical_{base}": names for base, names in list(targets.items())})


def __getattr__(name: str) -> Any:
    """`compress`, `LlmDrop` and the other recipes, and `Surgical<Base>` for every model class of Transformers."""
    if name == "compress":
        from .composing import compress

        return compress
    for module, recipe in RECIPES.items():
        if name == recipe:
            return getattr(import_module(f"{__name__}.{module}"), name)
    if name.startswith(PREFIX):
        import transformers

        base = getattr(transformers, name.removeprefix(PREFIX), None)
        if base is not None and name.endswith("Config"):
            return surgical_config(base.model_type)
        if base is not None:
            return surgical_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
