"""Configuration of Informer with the paper's generative decoder.

Paper: "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", arXiv:2012.07436.
Reference: https://github.com/zhouhaoyi/Informer2020. Transformers has another model under `model_type="informer"`, hence the name here.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization, check_transformer


def _presets() -> dict[str, dict[str, Any]]:
    """The authors' ETTh1 scripts, as `etth1-<horizon>` (seven variates) and `etth1-univariate-<horizon>` (the oil temperature)."""
    presets = {}

    def add(name: str, horizon: int, context: int, label: int, **fields: Any) -> None:
        sizes = {"prediction_length": horizon, "context_length": context, "label_length": label}
        presets[f"{name}-{horizon}"] = sizes | fields

    add("etth1", 24, 48, 48, sampling_factor=3)
    add("etth1", 48, 96, 48)
    for horizon in (168, 336):
        add("etth1", horizon, 168, 168)
    add("etth1", 720, 336, 336)
    for horizon, label in ((24, 168), (48, 168), (168, 336), (336, 336), (720, 336)):
        add("etth1-univariate", horizon, 720, label, num_input_channels=1, num_output_channels=1)
    return presets


@strict
class InformerGenerativeConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes and habits of an Informer. `InformerGenerativeConfig.from_preset("etth1-24")` gives a published one.

    Args:
        context_length: time steps that the encoder reads.
        label_length: of these, the last ones that also start the decoder (the paper's start token); at most `context_length`.
        prediction_length: time steps that are forecast, all in one pass.
        num_input_channels: number of variates that are read.
        num_output_channels: number of variates that are forecast, the last ones; None means all (1 is the authors' "MS" mode).
        num_time_features: calendar features per step: 4 for hourly data, 5 for minutely ... (see
            `hf_ext.data.time_series.calendar_features`); 0 leaves the calendar out.
        calendar_embedding: "linear" maps features in [-0.5, 0.5] (the authors' timeF). "fixed" (sinusoids) and "learned" look up
            whole numbers: month, day of month, weekday (Monday is 0), hour and, with 5 features, quarter of the hour.
        hidden_size, num_attention_heads, intermediate_size: as usual; `hidden_size` is even. A head is
            `hidden_size // num_attention_heads` wide; where that leaves a remainder, queries, keys and values are narrower.
        encoder_depths: layers of each encoder. Encoder i reads the last `context_length // 2**i` steps; more than one make the
            authors' InformerStack, [3, 2, 1] for example.
        num_decoder_layers: number of decoder layers.
        attention_type: "prob" (ProbSparse) or "full", of self-attention; cross-attention is always full.
        sampling_factor: c of ProbSparse attention: c * ceil(ln L) queries attend, found from as many sampled keys each.
        sampling_seed: seed of the keys that are sampled in eval mode, so that forecasts can be repeated; None draws new ones at
            each call. In training mode they are always new.
        distil: whether a convolution and pooling halve the length between encoder layers.
        mix_heads: whether the decoder's self-attention reads its (heads, time, channels) result as (time, heads * channels), as
            the authors' code does by default. Weights know nothing of it.
        decoder_fill: what stands for the horizon in the decoder's input, in standardised values.
        hidden_act: activation of the feed-forward networks: "gelu" or "relu" with the authors.
        dropout: probability after the embeddings, on full attention's weights, after attention, twice in the feed-forward network.
        layer_norm_eps: of every LayerNorm.
        channel_means, channel_stds: mean and standard deviation of each variate over the training data. The models do not use
            them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, an odd `hidden_size`, more heads than `hidden_size`, a `label_length` beyond the context, too
            many encoders for the context, an unknown choice, or means and standard deviations that do not go together.
    """

    model_type = "informer_generative"
    attribute_map = {
        "d_model": "hidden_size",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
        "decoder_layers": "num_decoder_layers",
        "activation_function": "hidden_act",
    }
    keys_to_ignore_at_inference = [
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
    ]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = _presets()

    context_length: int = 96
    label_length: int = 48
    prediction_length: int = 24
    num_input_channels: int = 7
    num_output_channels: int | None = None
    num_time_features: int = 4
    calendar_embedding: str = "linear"
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    encoder_depths: list[int] | tuple[int, ...] = (2,)
    num_decoder_layers: int = 1
    attention_type: str = "prob"
    sampling_factor: int = 5
    sampling_seed: int | None = 0
    distil: bool = True
    mix_heads: bool = True
    decoder_fill: float | int = 0
    hidden_act: str = "gelu"
    dropout: float | int = 0.05
    layer_norm_eps: float = 1e-5
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.num_output_channels is None:
            self.num_output_channels = self.num_input_channels
        self.encoder_depths = list(self.encoder_depths)
        super().__post_init__(**kwargs)
        check_at_least(
            self,
            1,
            "context_length",
            "prediction_length",
            "num_input_channels",
            "num_output_channels",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "num_decoder_layers",
            "sampling_factor",
        )
        check_at_least(self, 0, "num_time_features")
        self._check_sizes()
        self._check_choices()
        check_transformer(self)
        check_standardization(self)

    def layer_lengths(self) -> list[list[int]]:
        """Steps that each layer of each encoder reads: distilling halves them, rounding up, after every layer but the last."""
        lengths = []
        for index, depth in enumerate(self.encoder_depths):
            steps = [self.context_length // 2**index]
            for _ in range(depth - 1):
                steps.append(-(-steps[-1] // 2) if self.distil else steps[-1])
            lengths.append(steps)
        return lengths

    def _check_sizes(self) -> None:
        if self.hidden_size % 2:
            raise ValueError(f"`hidden_size` must be even (sines and cosines take turns), got {self.hidden_size}")
        if self.num_attention_heads > self.hidden_size:
            raise ValueError(
                f"`num_attention_heads` must be at most `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )
        if self.num_output_channels > self.num_input_channels:
            raise ValueError(
                f"`num_output_channels` must be at most `num_input_channels` ({self.num_input_channels}), "
                f"got {self.num_output_channels}"
            )
        if not 0 <= self.label_length <= self.context_length:
            raise ValueError(
                f"`label_length` must be between 0 and `context_length` ({self.context_length}), got {self.label_length}"
            )
        if not self.encoder_depths or min(self.encoder_depths) < 1:
            raise ValueError(f"`encoder_depths` must name at least one encoder of one layer, got {self.encoder_depths}")
        if self.context_length < (needed := 2 ** (len(self.encoder_depths) - 1)):
            raise ValueError(
                f"`encoder_depths` names {len(self.encoder_depths)} encoders, the last of which reads `context_length // {needed}` "
                f"steps: at least 1, got a context of {self.context_length}"
            )

    def _check_choices(self) -> None:
        for name, choices in (
            ("attention_type", ("prob", "full")),
            ("calendar_embedding", ("linear", "fixed", "learned")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.calendar_embedding != "linear" and self.num_time_features not in (4, 5):
            raise ValueError(
                f'`num_time_features` must be 4, or 5 with quarters of an hour, for `calendar_embedding` "{self.calendar_embedding}", '
                f"got {self.num_time_features}"
            )


__all__ = ["InformerGenerativeConfig"]
