"""Configuration of Aaren.

Paper: "Attention as an RNN", arXiv:2405.13956. The authors published no code.
Field names are Transformers' and, for what is particular to time series, PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization, check_transformer


@strict
class AarenConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        num_input_channels: variates of the series that are read; 0 for an `AarenModel` that takes embedded tokens (`inputs_embeds`)
            and has no embedding of its own.
        context_length: steps that the model was trained to look back, which the forecasting pipeline gives it. Nothing in the
            weights depends on it: `forward` takes any length, and a stream may go on for ever.
        prediction_length: steps that `AarenForPrediction` forecasts.
        hidden_size, num_hidden_layers, num_attention_heads: as usual; heads divide `hidden_size`. With variates `hidden_size` is even.
        intermediate_size: width of the feed-forward networks; None means `4 * hidden_size`, as in the paper.
        hidden_act: activation of the feed-forward networks, "relu" or "gelu" (exact).
        norm_first: whether norms stand before attention and feed-forward network (and one at the very end), or after the sums.
        use_bias: whether linear layers and norms have biases.
        dropout: probability after attention, and twice in the feed-forward network.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of the initial weights, the learned queries among them.
        channel_means, channel_stds: mean and standard deviation of each variate over the training data, if the model was
            trained on standardised data. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, heads that do not divide `hidden_size`, an odd `hidden_size` beside variates, a probability
            outside [0, 1), an unknown `hidden_act`, or means and standard deviations that do not go together.
    """

    model_type = "aaren"
    attribute_map = {"d_model": "hidden_size", "ffn_dim": "intermediate_size", "activation_function": "hidden_act"}
    keys_to_ignore_at_inference = ["past_key_values", "hidden_states"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"aaren-block": {}}  # the block whose parameters the paper counts

    num_input_channels: int = 0
    context_length: int = 96
    prediction_length: int = 96
    hidden_size: int = 512
    num_hidden_layers: int = 1
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    hidden_act: str = "relu"
    norm_first: bool = False
    use_bias: bool = True
    dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = False
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        super().__post_init__(**kwargs)
        check_at_least(self, 0, "num_input_channels")
        check_at_least(self, 1, "context_length", "prediction_length", "hidden_size", "num_hidden_layers")
        check_at_least(self, 1, "num_attention_heads", "intermediate_size")
        check_transformer(self)
        check_standardization(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )
        if self.num_input_channels and self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` must be even, for its positions are sines and cosines, got {self.hidden_size}"
            )

    @property
    def layer_types(self) -> list[str]:
        """What Transformers' caches need to know of each layer."""
        return ["linear_attention"] * self.num_hidden_layers


__all__ = ["AarenConfig"]
