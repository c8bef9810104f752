"""Configuration of STTN.

Paper: "Spatial-Temporal Transformer Networks for Traffic Flow Forecasting", arXiv:2001.02908.
References: https://github.com/xumingxingsjtu/STTN (the residual form) and https://github.com/LibCity/Bigscity-LibCity (the gated
form). Field names are Transformers' and, for what is particular to time series, PatchTST's.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least, check_standardization

FORMS = ("residual", "gated")
SKIP_PROJECTIONS = ("wider", "different")
SIZES = (
    "num_nodes",
    "context_length",
    "prediction_length",
    "num_input_channels",
    "num_output_channels",
    "num_attention_heads",
    "embedding_size",
    "intermediate_size",
    "head_size",
    "chebyshev_order",
    "hidden_size",
    "num_hidden_layers",
    "mlp_ratio",
)


@strict
class STTNConfig(PresetMixin, PreTrainedConfig):
    r"""
    Sizes of an STTN. `STTNConfig.from_preset("pemsd7m-228")` gives a published one.

    Args:
        form: "residual" is the authors' code: attention, projected input and a tenth of a Chebyshev graph convolution are added,
            and the model forecasts one step, longer horizons by feeding it back. "gated" is the paper's figure in LibCity's layout: a
            gate between attention and a two-layer graph convolution, and the whole horizon at once.
        num_nodes: road sensors; the weights are tied to their number and order.
        context_length: time steps that the model reads.
        prediction_length: time steps of a forecast. The residual form takes any other number in `forward` too.
        num_input_channels, num_output_channels: values per sensor and step, read and forecast; the residual form has one of each.
        num_attention_heads: of both attentions.
        stores_graph: the model has its graph with it, as a buffer that is saved with the weights; `set_graph` and `from_graph` do that.
        blocks: residual form, [width of the spatial part, width of the temporal part] of each block.
        embedding_size, intermediate_size, head_size: residual form, widths of the value embedding, of the feed-forward networks, and of
            the last hidden layer.
        chebyshev_order: residual form, number of Chebyshev polynomials, the identity included.
        skip_projection: residual form, where a block's skip path over the spatial part has a linear map: where its input is "wider" than
            its output (a narrower one is padded with zeros), or wherever they are "different".
        hidden_size, num_hidden_layers: gated form, as usual.
        mlp_ratio: gated form, width of the feed-forward networks over `hidden_size`.
        steps_per_day: gated form, rows of the table of time positions, of which the first `context_length` are used.
        dropout: in the residual form on attention weights and after attention and feed-forward network; in the gated form after the
            embedding and the LayerNorms, and inside the graph convolution (the authors use 0.1, LibCity 0).
        head_dropout: residual form, before the last layer.
        layer_norm_eps: of the LayerNorms over channels; None means the reference's, 1e-12 (residual) or 1e-5 (gated).
        channel_means, channel_stds: mean and standard deviation with which the training data was standardised, one for all sensors or one
            each. The models do not use them; the forecasting pipeline does.

    Raises:
        ValueError: a size below one, widths that the heads do not divide, a probability outside [0, 1), an unknown choice, or means and
            standard deviations that do not go together.
    """

    model_type = "sttn"
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "pemsd7m-25": {"num_nodes": 25},
        "pemsd7m-228": {"num_nodes": 228},
        "pems-bay-325": {"num_nodes": 325},
        "gated-metr-la": {"form": "gated", "num_nodes": 207, "prediction_length": 12, "num_attention_heads": 2, "dropout": 0.0},
        "gated-pems-bay": {"form": "gated", "num_nodes": 325, "prediction_length": 12, "num_attention_heads": 2, "dropout": 0.0},
    }  # fmt: skip

    form: str = "residual"
    num_nodes: int = 228
    context_length: int = 12
    prediction_length: int = 9
    num_input_channels: int = 1
    num_output_channels: int = 1
    num_attention_heads: int = 1
    stores_graph: bool = False
    blocks: list[list[int]] | None = None
    embedding_size: int = 32
    intermediate_size: int = 128
    head_size: int = 512
    chebyshev_order: int = 3
    skip_projection: str = "wider"
    hidden_size: int = 64
    num_hidden_layers: int = 3
    mlp_ratio: int = 4
    steps_per_day: int = 288
    dropout: float | int = 0.1
    head_dropout: float | int = 0.2
    layer_norm_eps: float | None = None
    channel_means: list[float] | None = None
    channel_stds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        self.blocks = [[64, 64]] if self.blocks is None else [list(block) for block in self.blocks]
        self._check_choices()
        if self.layer_norm_eps is None:
            self.layer_norm_eps = 1e-12 if self.form == "residual" else 1e-5
        super().__post_init__(**kwargs)
        self._check_sizes()
        check_standardization(self)
        if self.channel_means is not None and len(self.channel_means) not in (1, self.num_nodes):
            raise ValueError(
                f"`channel_means` must have 1 or `num_nodes` ({self.num_nodes}) entries, got {len(self.channel_means)}"
            )

    def _check_choices(self) -> None:
        for name, allowed in (("form", FORMS), ("skip_projection", SKIP_PROJECTIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}")

    def _check_sizes(self) -> None:
        check_at_least(self, 1, *SIZES)
        if not self.blocks or any(len(block) != 2 or min(block) < 1 for block in self.blocks):
            raise ValueError(f"`blocks` must be a list of pairs of widths of at least 1, got {self.blocks}")
        residual = self.form == "residual"
        if residual and (self.num_input_channels, self.num_output_channels) != (1, 1):
            raise ValueError(
                "`num_input_channels` and `num_output_channels` must be 1 in the residual form, "
                f"got {self.num_input_channels} and {self.num_output_channels}"
            )
        widths = sorted({width for block in self.blocks for width in block}) if residual else [self.hidden_size]
        if uneven := [width for width in widths if width % self.num_attention_heads]:
            field = "blocks" if residual else "hidden_size"
            raise ValueError(f"`num_attention_heads` ({self.num_attention_heads}) must divide `{field}`, got {uneven}")
        if not residual and self.steps_per_day < self.context_length:
            raise ValueError(
                f"`steps_per_day` must be at least `context_length` ({self.context_length}), got {self.steps_per_day}"
            )


__all__ = ["STTNConfig"]
