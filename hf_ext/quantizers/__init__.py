"""Number formats: quantizers in the place that Transformers has for them, `from_pretrained(..., quantization_config=...)`."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__, submod_attrs={"bct": ["BCTConfig", "BCTQuantizer", "quantize_model"]}
)
