"""BCT as a step of `hf-ext compress`: blockwise integers for a model in memory, without calibration or training (arXiv 2304.01483).

It changes number formats alone and so is no recipe: `hf_ext.quantizers.bct` is the quantizer, which `from_pretrained` finds by itself.
"""

from __future__ import annotations

from typing import Any

from hf_ext.quantizers.bct import BCTConfig, quantize_model


def compress(
    model: Any, calibration: Any = None, preset: str = "bct_int4_8", modules_to_not_convert: Any = None, **fields: Any
) -> Any:
    """The model in blockwise integers; the given one stays as it is.

    Args:
        model: a Transformers model in floats, changed by recipes or not.
        calibration: not used; the conversion looks at weights alone.
        preset: "bct_int4_8" or "bct_int8".
        modules_to_not_convert: names, as a list or joined by "+"; "" for none. The usual heads otherwise.
        fields: of `BCTConfig`.

    Raises:
        ValueError: a field that is not allowed, or a model that is quantized already, offloaded, or carries adapters.
    """
    if isinstance(modules_to_not_convert, str):
        modules_to_not_convert = [name for name in modules_to_not_convert.split("+") if name]
    if modules_to_not_convert is not None:
        fields["modules_to_not_convert"] = modules_to_not_convert
    return quantize_model(model, BCTConfig.from_preset(preset, **fields))


__all__ = ["compress"]
