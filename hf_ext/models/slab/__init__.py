import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_slab": ["SlabConfig"],
        "image_processing_slab": ["SlabImageProcessor"],
        "modeling_slab": ["SlabBackbone", "SlabForImageClassification", "SlabModel", "SlabPreTrainedModel"],
        # the language model
        "configuration_slab_llama": ["SlabLlamaConfig"],
        "modeling_slab_llama": ["SlabLlamaForCausalLM", "SlabLlamaModel", "SlabLlamaPreTrainedModel"],
    },
)
