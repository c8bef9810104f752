"""Configuration of the encoders of "Wide Attention Is The Way Forward For Transformers?" (arXiv 2210.00640)."""

from collections.abc import Iterator
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

ATTENTION_TYPES = (
    "transformer",
    "bigbird",
    "linear_transformer",
    "linformer",
    "local",
    "longformer",
    "performer",
    "sinkhorn",
    "sparse_transformer",
    "synthesizer",
)
POOLINGS = ("cls", "mean", "sum", "flatten")
SYNTHESIZER_MODES = ("factorized_random", "random")
BLOCK_SIZES = {"bigbird": 64, "local": 50, "sinkhorn": 50, "sparse_transformer": 50}


def _presets(task: str, *shapes: tuple[int, int], **fields: Any) -> dict[str, dict[str, Any]]:
    return {
        f"{task}-{layers}x{heads}": {"num_hidden_layers": layers, "num_attention_heads": heads, **fields}
        for layers, heads in shapes
    }


_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_labels": 2, "max_position_embeddings": 1000}
_MATCHING = {"hidden_size": 256, "intermediate_size": 1024, "num_labels": 2, "max_position_embeddings": 4000}


@strict
class WideAttentionConfig(PresetMixin, PreTrainedConfig):
    """Layers, heads and one of ten kinds of attention. The study holds layers times heads constant, and the width of a head.

    The encoders are those of Long Range Arena (google-research/long-range-arena), to which the names in brackets belong.

    Args:
        attention_type: one of `ATTENTION_TYPES`.
        vocab_size: token ids, `pad_token_id` (0) among them; 257 for bytes.
        hidden_size: width of the residual stream (emb_dim).
        num_hidden_layers, num_attention_heads: the aspect ratio.
        head_dim: width of a head; all heads together may be wider than `hidden_size` (qkv_dim).
        intermediate_size: width inside the feed-forward network and of the classifier's hidden layer (mlp_dim).
        max_position_embeddings: tokens at most (max_len), without the class token.
        hidden_dropout_prob, attention_probs_dropout_prob: 0 to 1.
        learned_positions: a learned table instead of sinusoids (learn_pos_emb).
        pooling: "cls" (a learned token in front), "mean", "sum" or "flatten"; "sinkhorn" knows no class token.
        block_size: tokens of a block; 64 for "bigbird", 50 for "local", "sinkhorn" and "sparse_transformer" when None.
        num_random_blocks: that each query block of "bigbird" reads besides its neighbours and the first and last block.
        sliding_window_size: width w of "longformer": a token sees w - w // 2 tokens up to itself and w // 2 after it.
        num_fixed_columns: last positions of each block that every later token of a "sparse_transformer" sees (pattern_c).
        projected_length: of keys and values in "linformer" (low_rank_features, which the reference leaves at 16).
        synthesizer_mode: "factorized_random" or "random".
        synthesizer_rank: inner size of the factorised logits; 32 in the reference whatever it is told.
        ignore_dot_product: whether "synthesizer" takes its learned logits alone.
        num_sort_buckets: blocks that "sinkhorn" can sort.
        reference_quirks: compute what the reference computes where that departs from the papers: blocks of strided tokens under masks of
            neighbouring ones ("local", "sinkhorn"), sorting without effect, causal "sparse_transformer", attention to padding
            ("linear_transformer", "linformer", "performer", "synthesizer"), means over padding. False gives the papers' forms.
        layer_norm_eps: of every norm.

    Raises:
        ValueError: a field out of its range, named with what is allowed.
    """

    model_type = "wide_attention"
    PRESETS = {
        **_presets("text", (6, 8), (3, 16), (2, 24), (1, 48), **_TEXT),
        **_presets("matching", (4, 4), (2, 8), (1, 16), **_MATCHING),
    }

    attention_type: str = "transformer"
    vocab_size: int = 257
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 2048
    max_position_embeddings: int = 512
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    learned_positions: bool = False
    pooling: str = "cls"
    block_size: int | None = None
    num_random_blocks: int = 3
    sliding_window_size: int = 512
    num_fixed_columns: int = 10
    projected_length: int = 16
    synthesizer_mode: str = "factorized_random"
    synthesizer_rank: int = 32
    ignore_dot_product: bool = True
    num_sort_buckets: int = 25
    reference_quirks: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.block_size is None:
            self.block_size = BLOCK_SIZES.get(self.attention_type)
        for name, allowed in (
            ("attention_type", ATTENTION_TYPES),
            ("pooling", POOLINGS),
            ("synthesizer_mode", SYNTHESIZER_MODES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size",
            "max_position_embeddings", "sliding_window_size", "projected_length", "synthesizer_rank", "num_sort_buckets",
            "num_random_blocks",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"`block_size` must be 1 or more, got {self.block_size}")
        if self.attention_type == "sparse_transformer" and not 0 <= self.num_fixed_columns <= self.block_size:
            raise ValueError(
                f"`num_fixed_columns` must be between 0 and `block_size` = {self.block_size}, got {self.num_fixed_columns}"
            )
        if self.attention_type == "sinkhorn" and self.pooling == "cls":
            raise ValueError(
                "`pooling` must be mean, sum or flatten for 'sinkhorn', whose blocks leave no room for a class token; got 'cls'"
            )
        if self.hidden_size % 2:
            raise ValueError(f"`hidden_size` must be even for sines and cosines in turn, got {self.hidden_size}")

    @property
    def num_positions(self) -> int:
        """Tokens that the encoder sees at most, the class token included."""
        return self.max_position_embeddings + (self.pooling == "cls")

    @classmethod
    def aspect_ratios(cls, total_heads: int, **fields: Any) -> Iterator["WideAttentionConfig"]:
        """The sweep of the paper: from `total_heads` layers of one head to one layer of all of them, the deepest first."""
        if total_heads < 1:
            raise ValueError(f"`total_heads` must be 1 or more, got {total_heads}")
        for layers in range(total_heads, 0, -1):
            if total_heads % layers == 0:
                yield cls(num_hidden_layers=layers, num_attention_heads=total_heads // layers, **fields)


__all__ = ["WideAttentionConfig"]
