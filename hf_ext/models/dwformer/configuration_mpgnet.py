"""Configuration of MPGNet, the degradation simulator of "Modular Degradation Simulation and Restoration for Under-Display Camera"
(arXiv 2209.11455), and of its discriminator."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

_ACTIVATIONS = ("sigmoid", "relu")


@strict
class MPGNetConfig(PresetMixin, PreTrainedConfig):
    r"""
    The defaults are MPGNet for P-OLED screens as published. Presets: `mpgnet-p` and `mpgnet-t` (for T-OLED screens).

    Args:
        light_rate_act: last activation of the light rates: "sigmoid" (P-OLED: at most 1) or "relu" (T-OLED).
        light_rate_hidden_size: width of the light-rate module; its middle layers are twice as wide.
        blur_hidden_size, num_blur_layers: width at full size and residual blocks at quarter size of the blur module.
        noise_hidden_size, num_noise_layers: width of the noise module and blocks of its feature extractor.
        r_vector_size: length of the random vector that the noise module is given for each image.
        discriminator_hidden_size: width of the discriminator at full size.
        discriminator_skip_connection: whether the discriminator adds the maps of its way down on its way up.
        discriminator_num_channels: of the degraded and the clear image together.
    """

    model_type = "mpgnet"

    light_rate_act: str = "sigmoid"
    light_rate_hidden_size: int = 32
    blur_hidden_size: int = 64
    num_blur_layers: int = 9
    noise_hidden_size: int = 64
    num_noise_layers: int = 5
    r_vector_size: int = 32
    discriminator_hidden_size: int = 64
    discriminator_skip_connection: bool = True
    discriminator_num_channels: int = 6
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    PRESETS = {"mpgnet-p": {}, "mpgnet-t": {"light_rate_act": "relu"}}

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = [
            name for name in vars(self) if name.endswith("_size") or (name.startswith("num_") and "layers" in name)
        ]
        for name in (*sizes, "discriminator_num_channels"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"`{name}` must be positive, not {value}")
        if self.light_rate_act not in _ACTIVATIONS:
            raise ValueError(f"`light_rate_act` must be one of {', '.join(_ACTIVATIONS)}, not {self.light_rate_act!r}")


__all__ = ["MPGNetConfig"]
