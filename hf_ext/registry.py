"""Makes the catalogue known to Transformers and Diffusers without loading any modeling code.

The Auto classes take classes, not names, so registering the ordinary way would import every model. Their mappings keep
what outsiders register in a plain dict (`_extra_content`); here that dict becomes a `LazyDict`, whose values are loaded
when somebody asks for them. What lives in modules that are themselves expensive (`transformers.pipelines`, `diffusers`)
is registered when, and if, those modules are imported.

Another package that registered the same model type first keeps it; our classes then still work under their own names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import wrapt

from .catalog import METHODS

# Auto classes of things that go before a model: the module that holds the mapping, and its name there
PROCESSOR_MAPPINGS = {
    "AutoImageProcessor": ("transformers.models.auto.image_processing_auto", "IMAGE_PROCESSOR_MAPPING"),
    "AutoFeatureExtractor": ("transformers.models.auto.feature_extraction_auto", "FEATURE_EXTRACTOR_MAPPING"),
    "AutoTokenizer": ("transformers.models.auto.tokenization_auto", "TOKENIZER_MAPPING"),
    "AutoProcessor": ("transformers.models.auto.processing_auto", "PROCESSOR_MAPPING"),
}
# attn_implementation -> package of `hf_ext.ops` whose module `interface` has `attention_mask`, and the attention: `attention_forward`, or
# what stands after ":"
ATTENTION_INTERFACES = {
    "bct_eager": "blockwise_integer",
    "bytetransformer": "varlen_attention",
    "linear_elu": "efficient_attention:linear_elu_forward",
    "nystrom": "efficient_attention:nystrom_forward",
    "performer": "efficient_attention:performer_forward",
    "prob_sparse": "prob_sparse_attention",
    "routing": "routed_attention",
    "spt_sparse": "sparse_attention",
    "ssa": "subsampled_attention",
    "window_global": "efficient_attention:window_global_forward",
}
# quant_method -> its configuration and its quantizer, in `hf_ext.quantizers`
QUANTIZERS = {"bct": ("BCTConfig", "BCTQuantizer")}


class Lazy:
    """A value that is computed when a `LazyDict` hands it out."""

    def __init__(self, load: Callable[[], Any]):
        self.load = load


class LazyDict(dict):
    """A dict that replaces each `Lazy` value by what it loads, at first access."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if isinstance(value, Lazy):
            value = self[key] = value.load()
        return value

    def get(self, key, default=None):
        return self[key] if key in self else default  # noqa: SIM401 - dict.get would hand out the Lazy

    def __iter__(self) -> Iterator:  # also makes dict(self) go through __getitem__
        return super().__iter__()

    def values(self):
        return [self[key] for key in self]

    def items(self):
        return [(key, self[key]) for key in self]


def register_lazily(mapping: Any, key: Any, load: Callable[[], Any]) -> None:
    """Registers `load()` under `key` in one of the Auto classes' mappings, unless the key is taken."""
    if not isinstance(mapping._extra_content, LazyDict):
        mapping._extra_content = LazyDict(mapping._extra_content)
    if key not in mapping._extra_content:
        mapping._extra_content[key] = Lazy(load)


def when_imported(module: str, function: Callable[[Any], None]) -> None:
    """Calls `function(module)` now if the module is loaded, otherwise right after it is."""
    # A module may put another object in its place while it loads (diffusers does), so look it up again.
    wrapt.register_post_import_hook(lambda _: function(sys.modules[module]), module)


def register_all() -> None:
    """Registers every method of the catalogue that works."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for method in METHODS.values():
        for config_name, classes in method.families.items() if method.ready else ():
            config_class = method.load(config_name)
            if config_class.model_type not in CONFIG_MAPPING:
                CONFIG_MAPPING.register(config_class.model_type, config_class)
            for auto_class, name in classes.items():
                _register_class(auto_class, config_class, partial(method.load, name))
    import_module("hf_ext.surgery").register()
    when_imported("transformers.modeling_utils", _register_attention)
    when_imported("transformers.modeling_utils", _register_quantizers)
    when_imported("transformers.pipelines", lambda module: import_module("hf_ext.pipelines").register(module))
    when_imported("diffusers", _register_diffusion_classes)


def _register_class(auto_class: str, config_class: type, load: Callable[[], type]) -> None:
    if auto_class not in PROCESSOR_MAPPINGS:
        when_imported(
            "transformers.models.auto.modeling_auto",
            lambda module: register_lazily(getattr(module, auto_class)._model_mapping, config_class, load),
        )
        return
    module_name, mapping = PROCESSOR_MAPPINGS[auto_class]
    if auto_class == "AutoImageProcessor":  # this mapping holds a class per image backend
        load = partial(lambda load_class: {"pil": load_class()}, load)
    when_imported(module_name, lambda module: register_lazily(getattr(module, mapping), config_class, load))


def _register_attention(modeling_utils: Any) -> None:
    """Both interfaces: without a mask function an implementation silently gets no mask."""
    from transformers.masking_utils import AttentionMaskInterface

    for name, row in ATTENTION_INTERFACES.items():
        op, _, function = row.partition(":")
        interface = import_module(f"hf_ext.ops.{op}.interface")
        modeling_utils.AttentionInterface.register(name, getattr(interface, function or "attention_forward"))
        AttentionMaskInterface.register(name, interface.attention_mask)


def _register_quantizers(_: Any) -> None:
    from transformers.quantizers import auto

    quantizers = import_module("hf_ext.quantizers")
    for name, (config, quantizer) in QUANTIZERS.items():
        if name not in auto.AUTO_QUANTIZER_MAPPING:
            auto.register_quantization_config(name)(getattr(quantizers, config))
            auto.register_quantizer(name)(getattr(quantizers, quantizer))


def _register_diffusion_classes(diffusers: Any) -> None:
    """`from_pretrained` of Diffusers' `DiffusionPipeline` and `AutoModel` looks classes up as attributes of the diffusers module."""
    diffusers._objects = LazyDict(diffusers._objects)
    for method in METHODS.values():
        names = [method.classes[base] for base in ("DiffusionPipeline", "ModelMixin") if base in method.classes]
        for name in names if method.ready else ():
            if name not in diffusers._class_to_module:
                diffusers._objects[name] = Lazy(partial(method.load, name))
