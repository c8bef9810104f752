"""Gated Linear Attention Transformer: a language model that generates in constant memory."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_gla": ["GLAConfig"],
        "modeling_gla": ["GLACache", "GLAForCausalLM", "GLAModel", "GLAPreTrainedModel"],
    },
)
