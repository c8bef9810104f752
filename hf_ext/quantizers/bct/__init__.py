"""BCT: everything in a Transformer as low-bit integers with a power of two for each block, without retraining (arXiv 2304.01483)."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_bct": ["BCTConfig"],
        "modules": ["BCTEmbedding", "BCTLinear"],
        "quantizer_bct": ["BCTQuantizer", "quantize_model"],
    },
)
