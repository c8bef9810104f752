"""Configuration of DWFormer, "Modular Degradation Simulation and Restoration for Under-Display Camera" (arXiv 2209.11455)."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

_POOLS = ("sum", "softmax")


@strict
class DWFormerConfig(PresetMixin, PreTrainedConfig):
    r"""
    The defaults are DWFormer as published, which is also the preset `dwformer`.

    Args:
        num_channels: of the input and of the output.
        hidden_sizes: width of the five stages: full, half and quarter size on the way down, half and full on the way up. The fourth
            equals the second, the fifth the first.
        mlp_ratios: hidden width of the stages' feed-forward parts over `hidden_sizes`.
        depths: blocks per stage.
        squeeze_factor: how much narrower the bottleneck of the channel attention is than the stage.
        global_pool: what the channel attention sees of the image: "sum" adds all pixels, as the authors' code does, where
            "softmax" takes a learned weighted mean, as the paper says. With "sum" the learned weights are kept, but not trained.
        fused: whether BatchNorm is folded into the convolution after it, for inference; `model.fuse()` sets it.
    """

    model_type = "dwformer"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (24, 48, 96, 48, 24)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (2, 4, 4, 2, 2)
    depths: list[int] | tuple[int, ...] = (8, 8, 8, 6, 6)
    squeeze_factor: int = 1
    global_pool: str = "sum"
    batch_norm_eps: float = 1e-5
    fused: bool = False

    PRESETS = {"dwformer": {}}

    def __post_init__(self, **kwargs):
        self.hidden_sizes, self.mlp_ratios, self.depths = map(list, (self.hidden_sizes, self.mlp_ratios, self.depths))
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the embedding."""
        return len(self.depths)

    def _check(self) -> None:
        for name in ("hidden_sizes", "mlp_ratios", "depths"):
            values = getattr(self, name)
            if len(values) != 5 or min(values) <= 0:
                raise ValueError(f"`{name}` must name a positive number for each of the five stages, not {values}")
        if self.hidden_sizes[3] != self.hidden_sizes[1] or self.hidden_sizes[4] != self.hidden_sizes[0]:
            raise ValueError(
                f"`hidden_sizes` must be the same on the way up as on the way down (a, b, c, b, a), not {self.hidden_sizes}"
            )
        if any(int(width * ratio) < 1 for width, ratio in zip(self.hidden_sizes, self.mlp_ratios)):
            raise ValueError(f"`mlp_ratios` must leave at least one channel per stage, not {self.mlp_ratios}")
        if not 1 <= self.squeeze_factor <= min(self.hidden_sizes):
            raise ValueError(
                f"`squeeze_factor` must lie between 1 and the smallest of `hidden_sizes` ({min(self.hidden_sizes)}), not "
                f"{self.squeeze_factor}"
            )
        if self.num_channels < 1:
            raise ValueError(f"`num_channels` must be positive, not {self.num_channels}")
        if self.global_pool not in _POOLS:
            raise ValueError(f"`global_pool` must be one of {', '.join(_POOLS)}, not {self.global_pool!r}")


__all__ = ["DWFormerConfig"]
