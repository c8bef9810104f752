"""Configuration that language models with a linear recurrence per head share (GLA, DeltaNet): flash-linear-attention's field names.

The `config.json` of the checkpoints under fla-hub loads unchanged.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .presets import PresetMixin

ATTENTION_DEFAULTS = {"num_kv_heads": None, "qkv_bias": False, "rope_theta": 10000.0, "window_size": None}


@strict
class RecurrentLanguageModelConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width d of the residual stream.
        num_hidden_layers (`int`): number of blocks.
        num_heads (`int`): heads; each has a state of `key_dim / num_heads` by `value_dim / num_heads` numbers.
        expand_k, expand_v (`float`): key_dim = int(d * expand_k) and value_dim = int(d * expand_v), both multiples of `num_heads`.
        hidden_ratio (`int`), intermediate_size (`int`, *optional*): width of the MLP; without `intermediate_size` it is
            int(d * hidden_ratio * 2 / 3) rounded up to a multiple of 256.
        use_short_conv (`bool`), conv_size (`int`): whether q, k and v pass a causal depthwise convolution, and its width in tokens.
        hidden_act (`str`): "swish", the only one these models know.
        norm_eps (`float`): epsilon of the norms.
        attn (`dict` or `list[dict]`, *optional*): layers that use softmax attention with rotary positions instead:
            {layers, num_heads, num_kv_heads, qkv_bias, rope_theta, window_size}. All windows must be equal.
        use_l2warp (`bool`): a penalty on the largest logit, 1e-4 / 2 * mean(max(logits) ** 2), that moves the gradient but
            not the reported loss.
        attn_mode, fuse_norm, fuse_swiglu, fuse_cross_entropy, fuse_linear_cross_entropy: choices of kernel in the reference; kept,
            without effect.
        max_position_embeddings: kept, without effect, as in the reference.
        attnres_block_size: the reference's attention-residual add-on, which is not part of these methods: only None is allowed.
        use_cache, initializer_range, tie_word_embeddings and the token ids: as everywhere in Transformers.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_attention_heads": "num_heads"}

    CHOICES: ClassVar[dict[str, tuple]] = {
        "attn_mode": ("chunk", "fused_recurrent"),
        "hidden_act": ("swish",),
        "attnres_block_size": (None,),
    }

    vocab_size: int = 32000
    hidden_size: int = 2048
    expand_k: float | int = 1.0
    expand_v: float | int = 1.0
    hidden_ratio: float | int | None = 4
    intermediate_size: int | None = None
    num_hidden_layers: int = 24
    num_heads: int = 16
    attn_mode: str = "chunk"
    use_short_conv: bool = True
    conv_size: int = 4
    hidden_act: str = "swish"
    max_position_embeddings: int | None = 2048
    norm_eps: float = 1e-6
    attn: dict | list | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    fuse_norm: bool = True
    fuse_swiglu: bool = True
    fuse_cross_entropy: bool = True
    fuse_linear_cross_entropy: bool = False
    use_l2warp: bool = False
    attnres_block_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_sizes()
        self._check_choices()
        self._check_attn()
        super().__post_init__(**kwargs)

    @property
    def key_dim(self) -> int:
        return int(self.hidden_size * self.expand_k)

    @property
    def value_dim(self) -> int:
        return int(self.hidden_size * self.expand_v)

    @property
    def mlp_dim(self) -> int:
        if self.intermediate_size is not None:
            return self.intermediate_size
        return 256 * -(-int(self.hidden_size * (self.hidden_ratio or 4) * 2 / 3) // 256)

    @property
    def attention_layers(self) -> dict[int, dict[str, Any]]:
        """Layer index -> the settings of its softmax attention, defaults filled in."""
        specs = [self.attn] if isinstance(self.attn, dict) else self.attn or []
        return {layer: ATTENTION_DEFAULTS | spec for spec in specs for layer in spec.get("layers", ())}

    @property
    def sliding_window(self) -> int | None:
        """The window of the softmax layers, which Transformers' masks and caches ask for."""
        return next((spec["window_size"] for spec in self.attention_layers.values() if spec["window_size"]), None)

    @property
    def layer_types(self) -> list[str]:
        """What Transformers' caches and masks need to know of each layer."""
        softmax = {
            layer: "sliding_attention" if spec["window_size"] else "full_attention"
            for layer, spec in self.attention_layers.items()
        }
        return [softmax.get(layer, "linear_attention") for layer in range(self.num_hidden_layers)]

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "conv_size", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name, channels in (("expand_k", self.key_dim), ("expand_v", self.value_dim)):
            if channels < 1 or channels % self.num_heads:
                raise ValueError(
                    f"{name}={getattr(self, name)} gives int(hidden_size * {name}) = {channels} channels for num_heads={self.num_heads}; "
                    "they must be a positive multiple of it"
                )
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps} must be positive")

    def _check_choices(self) -> None:
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")

    def _check_attn(self) -> None:
        seen: set[int] = set()
        for spec in [self.attn] if isinstance(self.attn, dict) else self.attn or []:
            if not isinstance(spec, dict) or not {"layers", "num_heads"} <= set(spec) <= {
                "layers",
                "num_heads",
                *ATTENTION_DEFAULTS,
            }:
                raise ValueError(
                    f"attn needs layers and num_heads, and may have {', '.join(ATTENTION_DEFAULTS)}; got {spec!r}"
                )
            spec = ATTENTION_DEFAULTS | spec
            heads, kv_heads = spec["num_heads"], spec["num_kv_heads"] or spec["num_heads"]
            if (
                heads < 1
                or self.hidden_size % heads
                or self.hidden_size // heads % 2
                or kv_heads < 1
                or heads % kv_heads
            ):
                raise ValueError(
                    f"attn has num_heads={heads}, num_kv_heads={kv_heads}: hidden_size={self.hidden_size} must split into "
                    "num_heads heads of an even size, and num_heads into num_kv_heads groups"
                )
            if not spec["rope_theta"] > 0 or (spec["window_size"] is not None and spec["window_size"] < 1):
                raise ValueError(
                    f"attn has rope_theta={spec['rope_theta']}, window_size={spec['window_size']}: both must be positive, "
                    "a window may be None"
                )
            layers = list(spec["layers"])
            if len({*layers}) < len(layers) or seen & {*layers} or not {*layers} <= {*range(self.num_hidden_layers)}:
                raise ValueError(
                    f"attn names layers {layers}: each of 0 ... {self.num_hidden_layers - 1} may be named once in all"
                )
            seen |= {*layers}
        windows = {spec["window_size"] for spec in self.attention_layers.values()} - {None}
        if len(windows) > 1:
            raise ValueError(
                f"attn has windows of {sorted(windows)} tokens: all must be equal, since they share one mask"
            )
