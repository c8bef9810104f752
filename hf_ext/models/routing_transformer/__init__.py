"""Routing Transformer: a language model whose heads attend to nearby blocks, or inside clusters of content."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_routing_transformer": ["RoutingTransformerConfig"],
        "modeling_routing_transformer": [
            "RoutingTransformerForCausalLM",
            "RoutingTransformerModel",
            "RoutingTransformerPreTrainedModel",
        ],
    },
)
