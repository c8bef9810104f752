"""DeltaNet and Mamba with eigenvalues between -1 and 1: language models that track states in constant memory."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_deltanet": ["DeltaNetConfig"],
        "configuration_signed_mamba": ["SignedMambaConfig"],
        "modeling_deltanet": ["DeltaNetCache", "DeltaNetForCausalLM", "DeltaNetModel", "DeltaNetPreTrainedModel"],
        "modeling_signed_mamba": ["SignedMambaForCausalLM", "SignedMambaModel", "SignedMambaPreTrainedModel"],
    },
)
