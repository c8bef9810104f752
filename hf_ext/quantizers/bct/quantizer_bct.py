"""BCT as a quantizer of Transformers: Blockwise Compression of Transformer-based Models without Retraining, arXiv 2304.01483.

    model = AutoModel.from_pretrained(folder, quantization_config=BCTConfig(weight_bits=4))
    model.save_pretrained(smaller)
    AutoModel.from_pretrained(smaller)

The authors published no code and the text has no formulas that could be consulted; the arithmetic is that of `ops.blockwise_integer`.
In the file a quantized tensor NAME is NAME_q (int8), or NAME_packed (uint8, two int4 a byte, the low nibble the even column), and
NAME_shift (int8, one for each block). In memory matrices stay so; biases and norms are floats that hold the rounded values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils import logging

from hf_ext.ops import blockwise_integer as blockwise
from hf_ext.ops.blockwise_integer.interface import Rounding

from .configuration_bct import BCTConfig
from .modules import (
    LINEAR,
    BCTEmbedding,
    BCTLinear,
    convert_embedding,
    convert_rounded,
    is_activation,
    is_embedding,
    is_norm,
    restore,
)

logger = logging.get_logger(__name__)

ATTENTION = "bct_eager"


class BCTQuantizer(HfQuantizer):
    """Puts integers into a model while it is loaded, one tensor at a time, or reads those of a saved one."""

    quantization_config: BCTConfig
    serialized_names = {"weight": ["weight_q", "weight_packed", "weight_shift"], "bias": ["bias_q", "bias_shift"]}

    def __init__(self, quantization_config: BCTConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.matrices: set[str] = set()  # tensors of the model, by name
        self.vectors: set[str] = set()

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        self._refuse_disk(device_map)

    def _refuse_disk(self, device_map: Any) -> None:
        """Transformers takes offloaded tensors from the file that is being read, where they are floats."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "BCT cannot convert and offload to disk at once: save the converted model, then load that with this device_map"
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """Ours, unless the user asked for another."""
        if self.rounds_attention and config._attn_implementation is None:
            config._attn_implementation = ATTENTION
        return config

    @property
    def rounds_attention(self) -> bool:
        return self.quantization_config.quantize_attention and self.quantization_config.activation_bits is not None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        config = self.quantization_config
        rounding = Rounding(config.activation_bits, config.block_size)
        layers: dict[nn.Module, BCTLinear] = {}  # a layer may stand in several places
        for name, module in self._choose(model).items():
            if type(module) in LINEAR:
                layers[module] = layers.get(module) or BCTLinear(module, config)
                model.set_submodule(name, layers[module])
            elif "source_class" in module.__dict__:
                continue
            elif isinstance(module, nn.Embedding):
                convert_embedding(module, config)
            else:
                convert_rounded(module, rounding)
        for module in model.modules():
            if type(module) in (BCTLinear, BCTEmbedding):
                # Transformers does not know how to initialize integers; `_initialize_missing` does
                module._is_hf_initialized = True
            elif hasattr(module, "config") and not isinstance(module, PreTrainedModel):
                module.rounding = rounding  # for attention
        ties = model.all_tied_weights_keys
        ties.update({f"{a}_shift": f"{b}_shift" for a, b in list(ties.items()) if a in self.matrices})
        if not self.matrices:
            logger.warning(f"BCT finds no linear layer or embedding to convert in {type(model).__name__}")
        if self.rounds_attention and not model._can_set_attn_implementation():
            logger.warning(f"The attention of {type(model).__name__} cannot be exchanged and stays in floats")
        return model

    def _choose(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The modules to convert, and which of their tensors: a tensor that is tied to one that stays, stays."""
        config, skip = self.quantization_config, self.quantization_config.modules_to_not_convert
        wanted = (
            lambda module: type(module) in LINEAR,
            lambda module: config.quantize_embeddings and is_embedding(module),
            lambda module: config.quantize_norms and is_norm(module),
            lambda module: config.quantize_activations and is_activation(module),
        )
        modules = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if name and any(is_wanted(module) for is_wanted in wanted) and should_convert_module(name, skip)
        }
        matrices = {f"{name}.weight" for name, m in modules.items() if type(m) in LINEAR or isinstance(m, nn.Embedding)}
        vectors = {
            f"{name}.{leaf}"
            for name, module in modules.items()
            for leaf, tensor in module.named_parameters(recurse=False)
            if leaf in ("weight", "bias") and f"{name}.{leaf}" not in matrices and tensor.ndim
        }
        staying: set[str] = set()
        while lone := {
            name
            for pair in model.all_tied_weights_keys.items()
            for name in pair
            if len((matrices | vectors).intersection(pair)) == 1 and name in matrices | vectors
        }:
            staying |= {name.removesuffix(".weight") for name in lone & matrices}
            matrices -= lone
            vectors = {name for name in vectors - lone if name.rpartition(".")[0] not in staying}
        self.matrices, self.vectors = matrices, vectors
        return {name: module for name, module in modules.items() if name not in staying}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return not self.pre_quantized and (param_name in self.matrices or param_name in self.vectors)

    def get_quantize_ops(self) -> ConversionOps:
        return BCTQuantize(self)

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"deserialize": BCTDeserialize}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self._refuse_disk(getattr(model, "hf_device_map", None))
        self._initialize_missing(model)
        for name in self.vectors:
            model.get_parameter(name).requires_grad_(False)
        model._weight_conversions = [  # those of saving; ours are `get_state_dict_and_metadata`
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or ()
            if not any(isinstance(operation, BCTDeserialize) for operation in getattr(conversion, "operations", ()))
        ]
        return model

    @torch.no_grad()
    def _initialize_missing(self, model: PreTrainedModel) -> None:
        """What a checkpoint lacks (the pooler of a masked language model, say), as the model would initialize it"""
        for name in sorted(self.matrices):
            path = name.removesuffix(".weight")
            module = model.get_submodule(path)
            if module.weight.is_meta or getattr(module.weight, "_is_hf_initialized", False):
                continue
            source = module.empty_source()
            model._init_weights(source)
            values = {f"{path}.{leaf}": value for leaf, value in source.named_parameters()}
            if getattr(getattr(module, "bias", None), "_is_hf_initialized", False):
                del values[f"{path}.bias"]
            self._set(model, values)

    def _set(self, model: PreTrainedModel, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            for target, tensor in self.get_quantize_ops().convert({name: value}, model=model).items():
                module, leaf = get_module_from_name(model, target)
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return dict(self._stored(model)), {}

    def _stored(self, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
        config = self.quantization_config
        for name, tensor in model.state_dict().items():
            if tensor.is_meta and (name in self.vectors or name in self.matrices):
                raise ValueError(f"'{name}' is offloaded: load the model without disk in its device_map to save it")
            if name in self.vectors:
                yield f"{name}_q", (integers := blockwise.quantize(tensor, config.vector_bits, config.block_size))[0]
                yield f"{name}_shift", integers[1]
            elif name in self.matrices:
                yield (f"{name}_packed", tensor.view(torch.uint8)) if config.packed else (f"{name}_q", tensor)
            else:
                yield name, tensor

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    @torch.no_grad()
    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        """A model in floats with the rounded weights; nothing else is rounded any more"""
        if any(tensor.is_meta for tensor in model.parameters()):
            raise ValueError(
                "Some weights are offloaded: load the model without disk in its device_map to dequantize it"
            )
        for name, module in list(model.named_modules()):
            if isinstance(module, BCTLinear):
                model.set_submodule(name, module.source())
            elif "source_class" in module.__dict__:
                restore(module)
            else:
                module.__dict__.pop("rounding", None)
        ties = model.all_tied_weights_keys
        for name in [name for name in ties if name.removesuffix("_shift") in self.matrices and name.endswith("_shift")]:
            del ties[name]
        model.tie_weights(recompute_mapping=False)
        if model.config._attn_implementation == ATTENTION:
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        return model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


class BCTQuantize(ConversionOps):
    """A tensor of a checkpoint in floats -> the tensors of the model"""

    def __init__(self, quantizer: BCTQuantizer):
        self.quantizer = quantizer

    @torch.no_grad()
    def convert(self, input_dict: Mapping[str, Any], model: Any = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        config, converted = self.quantizer.quantization_config, {}
        for name, value in input_dict.items():
            value = value[0] if isinstance(value, list) else value
            module, _ = get_module_from_name(model, name)
            if name in self.quantizer.matrices:
                converted[name], converted[f"{name}_shift"] = module.integers(value, config.weight_bits)
            else:
                integers = blockwise.quantize(value, config.vector_bits, config.block_size)
                converted[name] = _vector(*integers, config.block_size, value.dtype)
        return converted


class BCTDeserialize(ConversionOps):
    """The tensors of a saved file -> those of the model"""

    def __init__(self, hf_quantizer: BCTQuantizer):
        self.hf_quantizer = hf_quantizer

    @torch.no_grad()
    def convert(
        self, input_dict: Mapping[str, Any], model: Any = None, full_layer_name: str = "", **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        parts = {
            name.rpartition("_")[2]: value[0] if isinstance(value, list) else value
            for name, value in input_dict.items()
        }
        q, shift = parts["packed"].view(torch.int8) if "packed" in parts else parts["q"], parts["shift"]
        if full_layer_name in self.hf_quantizer.matrices:
            return {full_layer_name: q, f"{full_layer_name}_shift": shift}
        dtype = model.get_parameter(full_layer_name).dtype
        return {full_layer_name: _vector(q, shift, self.hf_quantizer.quantization_config.block_size, dtype)}


def _vector(q: torch.Tensor, shift: torch.Tensor, block: int, dtype: torch.dtype) -> torch.Tensor:
    return blockwise.dequantize(q[None], shift[None], (1, block), dtype)[0]


def quantize_model(model: PreTrainedModel, config: BCTConfig) -> PreTrainedModel:
    """A copy of a model in memory, in blockwise integers; what stays in floats is shared with the given model.

    Raises:
        ValueError: the model is quantized already, carries adapters, or has weights offloaded or not finite.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"The model is quantized already, by '{model.quantization_method}': a model has one number format"
        )
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model carries adapters: `merge_and_unload()` them before it is quantized")
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError("Some weights are offloaded: load the model whole, without `device_map`, to quantize it")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    state = model.state_dict()
    changed = copy.deepcopy(model, memo=shared)
    quantizer = BCTQuantizer(config, pre_quantized=False)
    quantizer.preprocess_model(changed)
    quantizer._set(changed, {name: state[name] for name in sorted(quantizer.matrices | quantizer.vectors)})
    changed.tie_weights(recompute_mapping=False)
    if quantizer.rounds_attention and changed._can_set_attn_implementation():
        changed.set_attn_implementation(ATTENTION)
    changed.hf_quantizer = quantizer
    for name in quantizer.matrices:
        changed.get_parameter(name)._is_hf_initialized = True
    quantizer.postprocess_model(changed)
    return changed


__all__ = ["BCTEmbedding", "BCTQuantizer", "quantize_model"]
