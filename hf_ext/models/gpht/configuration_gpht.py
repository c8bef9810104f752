"""Configuration of GPHT.

Paper: "Generative Pretrained Hierarchical Transformer for Time Series Forecasting", arXiv:2402.16516.
Reference: https://github.com/icantnamemyself/GPHT. Field names are Transformers' and, for what is particular to time series,
PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization, check_transformer


@strict
class GPHTConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes of a GPHT. `GPHTConfig.from_preset("gpht-base")` is the published one, "gpht-small" trains in minutes on a CPU.

    Args:
        context_length: time steps that the model was trained to look back; a multiple of `token_length`. Nothing in the weights
            depends on it: `forward` takes any length of a token or more.
        token_length: steps of a token, and steps that one pass forecasts; `prediction_length` is another name for it. Longer
            horizons are the `prediction_length` that `forward` takes.
        pooling_rates: one stage each: how many neighbouring steps its max-pooling makes one. Each divides `token_length`.
        hidden_size, num_attention_heads: as usual; `hidden_size` is even. A head is `hidden_size // num_attention_heads` wide.
        num_hidden_layers: Transformer layers of each stage.
        intermediate_size: width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks; the authors use "gelu" (exact) and "relu".
        dropout: probability after the embedding, on attention weights, after attention, and twice in the feed-forward network. The
            authors fine-tune with 0.
        subtract_predictions: whether a stage sees what the stages before it left unexplained (the method). False is the paper's
            ablation: every stage sees the series itself, and their predictions still add.
        layer_norm_eps: of every LayerNorm.
        channel_means, channel_stds: mean and standard deviation of each variate over the training data, if the model was
            trained on standardised data. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, a `context_length` that is no multiple of `token_length`, a pooling rate that does not divide
            it, an odd `hidden_size` or one below the number of heads, a probability outside [0, 1), an unknown `hidden_act`, or
            means and standard deviations that do not go together.
    """

    model_type = "gpht"
    attribute_map = {
        "d_model": "hidden_size",
        "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act",
        "patch_length": "token_length",
        "prediction_length": "token_length",
    }
    keys_to_ignore_at_inference = [
        "token_predictions",
        "stage_hidden_states",
        "loc",
        "scale",
        "hidden_states",
        "attentions",
    ]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "gpht-base": {},
        "gpht-small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1},
    }

    context_length: int = 336
    token_length: int = 48
    pooling_rates: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    hidden_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    dropout: float | int = 0.1
    subtract_predictions: bool = True
    layer_norm_eps: float = 1e-5
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        self.pooling_rates = list(self.pooling_rates)
        super().__post_init__(**kwargs)
        check_at_least(
            self,
            1,
            "context_length",
            "token_length",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
        if self.context_length % self.token_length:
            raise ValueError(
                f"`context_length` must be a multiple of `token_length` ({self.token_length}), got {self.context_length}"
            )
        if not self.pooling_rates or any(rate < 1 or self.token_length % rate for rate in self.pooling_rates):
            raise ValueError(
                f"`pooling_rates` must be one or more divisors of `token_length` ({self.token_length}), got {self.pooling_rates}"
            )
        if self.hidden_size % 2 or self.hidden_size < self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be even (sines and cosines of positions) and at least `num_attention_heads` "
                f"({self.num_attention_heads}), got {self.hidden_size}"
            )
        check_transformer(self)
        check_standardization(self)


__all__ = ["GPHTConfig"]
