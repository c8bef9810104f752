"""Long Range Arena's encoders (google-research/long-range-arena): Flax names joined by "/", kernels (in, out) or split into heads."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from hf_ext.models.wide_attention import WideAttentionConfig

from .operations import Flatten, Reshape

# The reference's argument -> ours; None: nothing depends on it
ARGUMENTS = {
    "attention_type": "attention_type",
    "vocab_size": "vocab_size",
    "num_classes": "num_labels",
    "emb_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_len": "max_position_embeddings",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "learn_pos_emb": "learned_positions",
    "block_size": "block_size",
    "pattern_block_size": "block_size",
    "pattern_c": "num_fixed_columns",
    "sliding_window_size": "sliding_window_size",
    "num_rand_blocks": "num_random_blocks",
    "synthesizer_mode": "synthesizer_mode",
    "ignore_dot_product": "ignore_dot_product",
    "low_rank_features": None,
    "k": None,
    "classifier": None,
    "train": None,
}
DEFAULTS = {"num_classes": 10, "emb_dim": 512, "num_layers": 6, "num_heads": 8, "mlp_dim": 2048, "max_len": 512}
IGNORE = ["*_global/kernel", "*/DenseGeneral_0/kernel"]


def model_class(arguments: dict[str, Any]) -> str:
    return "WideAttentionForSequenceClassification" if arguments.get("classifier", True) else "WideAttentionModel"


def config(arguments: dict[str, Any]) -> WideAttentionConfig:
    known = {*ARGUMENTS, "qkv_dim", "classifier_pool"}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(
            f"The encoders of Long Range Arena have no argument {', '.join(unknown)}; they have {', '.join(sorted(known))}"
        )
    arguments = DEFAULTS | arguments
    fields = {ours: arguments[name] for name, ours in ARGUMENTS.items() if ours and name in arguments}
    pooling = arguments.get("classifier_pool", "CLS").lower() if arguments.get("classifier", True) else "mean"
    return WideAttentionConfig(
        **fields, pooling=pooling, head_dim=arguments.get("qkv_dim", 512) // arguments["num_heads"]
    )


def RULES(arguments: dict[str, Any]) -> list:
    width = (DEFAULTS | arguments)["emb_dim"]
    base = "model." if arguments.get("classifier", True) else ""
    transposed, heads_last, heads_first = (
        [Transpose(0, 1)],
        [Flatten(1), Transpose(0, 1)],
        [Reshape((-1, width)), Transpose(0, 1)],
    )
    return [
        WeightRenaming(r"^Embed_0/embedding$", f"{base}embeddings.word_embeddings.weight"),
        WeightRenaming(r"^cls$", f"{base}embeddings.cls_token"),
        WeightRenaming(r"^posembed_input/pos_embedding$", f"{base}embeddings.position_embeddings"),
        WeightRenaming(r"^encoder_norm/", f"{base}layernorm/"),
        WeightRenaming(r"^mlp/", "classifier.dense/"),
        WeightRenaming(r"^logits/", "classifier.out_proj/"),
        WeightRenaming(r"^encoderblock_(\d+)/", rf"{base}layers.\1/"),
        WeightRenaming(r"/LayerNorm_0/", "/attention_norm/"),
        WeightRenaming(r"/LayerNorm_2/", "/mlp_norm/"),
        WeightRenaming(r"/MlpBlock_3/Dense_0/", "/mlp.fc1/"),
        WeightRenaming(r"/MlpBlock_3/Dense_1/", "/mlp.fc2/"),
        WeightRenaming(r"/\w+Attention_1/lr_kernel$", "/attention.projection"),
        WeightRenaming(r"/\w+Attention_1/(random\d?)$", r"/attention.\1"),
        WeightRenaming(r"/\w+Attention_1/", "/attention."),
        WeightRenaming(r"attention\.(query|key|value)_sliding_window/", r"attention.\1/"),
        *(WeightRenaming(f"attention.{name}/kernel", f"attention.{name[0]}_heads") for name in ("query", "key", "value")),
        WeightRenaming(r"attention\.out/kernel", "attention.o_heads"),
        WeightRenaming(r"/scale$", ".weight"),
        WeightRenaming(r"/bias$", ".bias"),
        WeightRenaming(r"(layers\.\d+)/", r"\1."),
        *(WeightConverter(f"attention.{name}_heads", f"attention.{name}_proj.weight", operations=heads_last) for name in "qkv"),
        WeightConverter("attention.o_heads", "attention.o_proj.weight", operations=heads_first),
        *(WeightConverter(f"{name}/kernel", f"{name}.weight", operations=transposed) for name in ("fc1", "fc2", "dense", "out_proj")),
    ]  # fmt: skip
