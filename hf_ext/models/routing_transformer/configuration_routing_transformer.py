"""Configuration of the Routing Transformer (arXiv 2003.05997)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

ENWIK8 = {
    "hidden_size": 1024,
    "embedding_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_local_heads": 4,
    "num_routing_heads": 4,
}
PG19 = {
    "max_position_embeddings": 8192,
    "hidden_size": 1032,
    "embedding_size": 1032,
    "intermediate_size": 4096,
    "block_size": 256,
    "look_back": 256,
    "max_relative_position": 513,
}
PG19_CLUSTER = PG19 | {
    "num_hidden_layers": 22,
    "num_local_heads": 6,
    "num_routing_heads": 2,
    "first_routing_layer": 21,
    "num_clusters": 16,
    "cluster_window": 512,
}


@strict
class RoutingTransformerConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        vocab_size (`int`): number of token ids; the default is that of the released PG-19 model.
        hidden_size (`int`): width of the residual stream.
        embedding_size (`int`): width of the embedding table and of the layer before the logits.
        num_hidden_layers (`int`): number of layers.
        intermediate_size (`int`), hidden_act (`str`): the MLP: "geglu" without biases, "relu" with biases, or "none".
        num_local_heads (`int`): heads that attend to their own block of `block_size` tokens and to `look_back` tokens before it.
        num_routing_heads (`int`): heads that attend inside the clusters of `num_clusters` centroids, each of which takes the
            `cluster_window` tokens most similar to it.
        num_strided_routing_heads (`int`): heads whose centroids take tokens at equal steps of similarity; at most `num_routing_heads`.
        num_strided_heads (`int`): heads that attend to the same place in every earlier block.
        first_routing_layer (`int`): layers before it have local heads in place of routing heads.
        block_size (`int`), look_back (`int`): see above; `look_back` is a multiple of `block_size`.
        share_qk (`bool`): whether the keys of routing heads are their queries.
        ema (`bool`): whether centroids follow the tokens by moving averages in training; otherwise they are parameters.
        ema_decay (`float`): of the moving averages. Strided routing heads use 0.99, as in the reference.
        commitment_weight (`float`): weight of the clustering loss, which is added to the language model's.
        hash_items (`bool`): whether random hyperplanes (LSH) choose instead of centroids; `num_clusters` is then at least 2.
        local_relative, routing_relative, strided_routing_relative, strided_relative (`bool`): whether the heads of a kind have
            learned relative positions.
        max_relative_position (`int`): distance from which on all are alike.
        key_channels, value_channels (`int`, *optional*): width of all heads' queries and keys, and of their values; `hidden_size`
            when None. Routing heads need both equal.
        layer_preprocess_sequence, layer_postprocess_sequence (`str`): what is done before and after a sublayer: "n" norm,
            "d" dropout, "a" residual (after only), in order, each at most once; "none" for nothing. "dan" is post-norm.
        layer_norm_eps (`float`): epsilon of the norms.
        add_timing_signal (`bool`): whether sines and cosines of the position are added to the embeddings.
        token_dropout (`float`): share of input tokens that become id 0 in training.
        embedding_dropout, attention_dropout, activation_dropout, hidden_dropout (`float`): of embeddings, attention weights,
            the MLP's hidden layer, and of "d" in the sequences above.
        max_position_embeddings (`int`): length trained with; nothing depends on it but the tokenizer's limit.
        initializer_range (`float`): gain of the uniform unit scaling that the weights start from.
        use_cache, tie_word_embeddings and the token ids: as everywhere in Transformers. A text starts with id 0 (`bos_token_id`), the
            reference's padding id, which is why `pad_token_id` is None: give an `attention_mask` where there is padding.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    model_type = "routing_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "enwik8-local-cluster-8k": ENWIK8
        | {
            "max_position_embeddings": 8192,
            "num_clusters": 16,
            "cluster_window": 512,
            "block_size": 256,
            "look_back": 256,
            "max_relative_position": 513,
        },
        "enwik8-local-cluster-12k": ENWIK8
        | {
            "max_position_embeddings": 12288,
            "num_clusters": 48,
            "cluster_window": 256,
            "block_size": 128,
            "look_back": 128,
            "max_relative_position": 257,
        },
        "wikitext103-local-cluster-4k": {
            "max_position_embeddings": 4096,
            "hidden_size": 1024,
            "embedding_size": 256,
            "intermediate_size": 3072,
            "num_hidden_layers": 14,
            "num_local_heads": 8,
            "num_routing_heads": 8,
            "num_clusters": 8,
            "cluster_window": 512,
            "block_size": 256,
            "look_back": 256,
            "max_relative_position": 513,
            "attention_dropout": 0.4,
            "activation_dropout": 0.4,
            "embedding_dropout": 0.4,
            "token_dropout": 0.25,
        },
        "pg19-local-8k": PG19 | {"num_hidden_layers": 24, "num_local_heads": 8},
        "pg19-local-cluster-8k": PG19_CLUSTER,
        "pg19-released": PG19_CLUSTER | {"first_routing_layer": 20, "hidden_act": "relu"},
    }

    vocab_size: int = 98302
    hidden_size: int = 512
    embedding_size: int = 512
    num_hidden_layers: int = 24
    intermediate_size: int = 2048
    hidden_act: str = "geglu"
    num_local_heads: int = 8
    num_routing_heads: int = 0
    num_strided_routing_heads: int = 0
    num_strided_heads: int = 0
    first_routing_layer: int = 0
    num_clusters: int = 0
    cluster_window: int = 0
    block_size: int = 512
    look_back: int = 512
    share_qk: bool = True
    ema: bool = True
    ema_decay: float = 0.999
    commitment_weight: float = 1e-4
    hash_items: bool = False
    local_relative: bool = True
    routing_relative: bool = True
    strided_routing_relative: bool = True
    strided_relative: bool = False
    max_relative_position: int = 1024
    key_channels: int | None = None
    value_channels: int | None = None
    layer_preprocess_sequence: str = "none"
    layer_postprocess_sequence: str = "dan"
    layer_norm_eps: float = 1e-6
    add_timing_signal: bool = False
    token_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.1
    max_position_embeddings: int = 4096
    initializer_range: float = 0.2
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_sizes()
        self._check_routing()
        self._check_choices()
        super().__post_init__(**kwargs)

    @property
    def num_attention_heads(self) -> int:
        return self.num_local_heads + self.num_routing_heads + self.num_strided_routing_heads + self.num_strided_heads

    @property
    def key_width(self) -> int:
        return self.key_channels or self.hidden_size

    @property
    def value_width(self) -> int:
        return self.value_channels or self.hidden_size

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "embedding_size",
            "num_hidden_layers",
            "intermediate_size",
            "block_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        kinds = ("num_local_heads", "num_routing_heads", "num_strided_routing_heads", "num_strided_heads")
        for name in (*kinds, "first_routing_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        heads = self.num_attention_heads
        if heads < 1 or self.key_width % heads or self.value_width % heads:
            raise ValueError(
                f"{' + '.join(kinds)} = {heads} heads must be at least 1 and divide hidden_size={self.hidden_size} "
                f"(or key_channels={self.key_channels} and value_channels={self.value_channels})"
            )
        if self.look_back < 0 or self.look_back % self.block_size:
            raise ValueError(f"look_back={self.look_back} must be a multiple of block_size={self.block_size}, or 0")
        if self.max_relative_position < 1:
            raise ValueError(f"max_relative_position={self.max_relative_position} must be at least 1")

    def _check_routing(self) -> None:
        if self.num_strided_routing_heads > self.num_routing_heads:
            raise ValueError(
                f"num_strided_routing_heads={self.num_strided_routing_heads} must be at most num_routing_heads={self.num_routing_heads}"
            )
        if not self.num_routing_heads:
            return
        if self.num_clusters < (2 if self.hash_items else 1) or self.cluster_window < 1:
            raise ValueError(
                f"num_clusters={self.num_clusters} and cluster_window={self.cluster_window} must be at least 1 with routing heads "
                "(num_clusters at least 2 with hash_items)"
            )
        if self.key_width != self.value_width:
            raise ValueError(
                f"key_channels={self.key_channels} and value_channels={self.value_channels} must be equal with routing heads"
            )

    def _check_choices(self) -> None:
        if self.hidden_act not in ("geglu", "relu", "none"):
            raise ValueError(f"hidden_act={self.hidden_act!r} is not one of 'geglu', 'relu', 'none'")
        for name, allowed in (("layer_preprocess_sequence", "dn"), ("layer_postprocess_sequence", "dan")):
            value = getattr(self, name)
            if value != "none" and (not value or len(set(value)) < len(value) or set(value) - set(allowed)):
                raise ValueError(f"{name}={value!r} must be 'none' or letters of {allowed!r}, each once")
        for name in ("token_dropout", "embedding_dropout", "attention_dropout", "activation_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be at least 0 and less than 1")
        if not self.layer_norm_eps > 0 or self.commitment_weight < 0:
            raise ValueError(
                f"layer_norm_eps={self.layer_norm_eps} must be positive and commitment_weight={self.commitment_weight} at least 0"
            )


__all__ = ["RoutingTransformerConfig"]
