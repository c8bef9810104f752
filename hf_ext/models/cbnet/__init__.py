import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_cbnet": ["CompositeBackboneConfig"],
        "modeling_cbnet": [
            "CompositeBackbone",
            "CompositeBackboneOutput",
            "CompositeBackboneWithPyramid",
            "CompositePreTrainedModel",
        ],
    },
)
