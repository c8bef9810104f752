"""google-research/google-research `routing_transformer/` (Tensor2Tensor, TensorFlow 1) -> RoutingTransformerForCausalLM.

`arguments` are the hparams, names and defaults those of `sparse_transformer_local`; a published `hparams.json` serves as it is. The
state dict holds the checkpoint's variables under their names, kernels [in, out]. TensorFlow reads a checkpoint:

    reader = tf.train.load_checkpoint("checkpoint/model.ckpt")
    save_file({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, "model.safetensors")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from hf_ext.models.routing_transformer import RoutingTransformerConfig

MODEL = "RoutingTransformerForCausalLM"
# reference hparam -> (our field, the reference's default)
FIELDS = {
    "vocab_size": ("vocab_size", 98302),
    "hidden_size": ("hidden_size", 512),
    "embedding_dims": ("embedding_size", 512),
    "num_decoder_layers": ("num_hidden_layers", 24),
    "filter_size": ("intermediate_size", 2048),
    "local_num_heads": ("num_local_heads", 8),
    "sparsity_cluster_num_heads": ("num_routing_heads", 0),
    "sparsity_cluster_strided_num_heads": ("num_strided_routing_heads", 0),
    "sparsity_strided_num_heads": ("num_strided_heads", 0),
    "sparsity_skip_first": ("first_routing_layer", 0),
    "sparsity_cluster_size": ("num_clusters", 0),
    "sparsity_cluster_attention_window": ("cluster_window", 0),
    "share_qk": ("share_qk", True),
    "ema": ("ema", True),
    "decay": ("ema_decay", 0.999),
    "beta": ("commitment_weight", 1e-4),
    "hash_items": ("hash_items", False),
    "local_relative": ("local_relative", True),
    "sparsity_cluster_relative": ("routing_relative", True),
    "sparsity_cluster_strided_relative": ("strided_routing_relative", True),
    "sparsity_strided_relative": ("strided_relative", False),
    "max_relative_position": ("max_relative_position", 1024),
    "layer_preprocess_sequence": ("layer_preprocess_sequence", "none"),
    "layer_postprocess_sequence": ("layer_postprocess_sequence", "dan"),
    "norm_epsilon": ("layer_norm_eps", 1e-6),
    "add_timing_signal": ("add_timing_signal", False),
    "target_dropout": ("token_dropout", 0.0),
    "dropout": ("embedding_dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
    "relu_dropout": ("activation_dropout", 0.0),
    "layer_prepostprocess_dropout": ("hidden_dropout", 0.1),
    "max_target_length": ("max_position_embeddings", 4096),
    "initializer_gain": ("initializer_range", 0.2),
}
BLOCKS = {"query_shape": ("block_size", (512,)), "memory_flange": ("look_back", (512,))}
# 0 in the reference stands for hidden_size
WIDTHS = {"attention_key_channels": "key_channels", "attention_value_channels": "value_channels"}
# of the encoder, the training run and its data, or of Tensor2Tensor at large: without effect on the decoder
UNUSED = frozenset(
    """
    activation_dtype batch_shuffle_size batch_size bottom cache_padding_bias clip_grad_norm compress_steps daisy_chain_variables data_dir
    eval_drop_long_sequences eval_run_autoregressive factored_logits fast_decode force_full_predict generate_summaries grad_noise_scale
    heads_share_embedding initializer input_dropout kernel_height kernel_width label_smoothing learning_rate learning_rate_constant
    learning_rate_cosine_cycle_steps learning_rate_decay_rate learning_rate_decay_scheme learning_rate_decay_staircase
    learning_rate_decay_steps learning_rate_minimum learning_rate_schedule learning_rate_warmup_steps length_bucket_step
    max_area_height max_area_width max_input_seq_length max_length max_target_seq_length memory_height memory_query_shape
    min_length min_length_bucket mixed_precision_optimizer_init_loss_scale mixed_precision_optimizer_loss_scaler mlperf_mode mode
    modality moe_hidden_sizes moe_k moe_loss_coef moe_num_experts multiply_embedding_mode multiproblem_fixed_train_length
    multiproblem_label_weight multiproblem_max_input_length multiproblem_max_target_length multiproblem_mixing_schedule
    multiproblem_per_task_threshold multiproblem_reweight_label_loss multiproblem_schedule_max_examples
    multiproblem_schedule_threshold multiproblem_target_eval_only multiproblem_vocab_size name no_data_parallelism norm_type
    nucleus_sampling num_area_layers num_decode_cores num_heads num_hidden_layers optimizer optimizer_adafactor_beta1
    optimizer_adafactor_beta2 optimizer_adafactor_clipping_threshold optimizer_adafactor_decay_type optimizer_adafactor_factored
    optimizer_adafactor_memory_exponent optimizer_adafactor_multiply_by_parameter_scale optimizer_adam_beta1 optimizer_adam_beta2
    optimizer_adam_epsilon optimizer_momentum_momentum optimizer_momentum_nesterov optimizer_multistep_accumulate_steps
    optimizer_zero_grads overload_eval_metric_name pack_dataset pad_batch prepend_mode problem
    sampling_keep_top_k sampling_method sampling_temp scheduled_sampling_gold_mixin_prob scheduled_sampling_method
    scheduled_sampling_num_passes scheduled_sampling_prob scheduled_sampling_warmup_schedule scheduled_sampling_warmup_steps
    self_attention_type shared_embedding shared_embedding_and_softmax_weights shared_source_target_embedding split_targets_chunk_length
    split_targets_max_chunks split_targets_strided_training split_to_length summarize_grads summarize_vars
    symbol_dropout symbol_modality_num_shards symbol_modality_skip_top tied_embedding token_bias_wt_trainable top tpu_enable_host_call
    train_steps unidirectional_encoder use_custom_ops use_fixed_batch_size use_pad_remover use_target_space_embedding
    use_tpu video_num_input_frames video_num_target_frames vocab_divisor warm_start_from_second weight_decay weight_dtype weight_noise
    weights_fn
    """.split()  # noqa: SIM905 - a list would be two screens high
)


def config(arguments: Mapping[str, Any]) -> RoutingTransformerConfig:
    known = (*FIELDS, *BLOCKS, *WIDTHS, "ffn_layer", "num_encoder_layers")
    if unknown := sorted(arguments.keys() - UNUSED - set(known)):
        raise ValueError(
            f"Routing Transformer has no hparam {', '.join(unknown)}; those with an effect are {', '.join(known)}"
        )
    if arguments.get("num_encoder_layers", 0):
        raise ValueError(
            f"num_encoder_layers={arguments['num_encoder_layers']}: models with an encoder do not convert, only language models (0)"
        )
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    for name, (field, default) in BLOCKS.items():
        shape = arguments.get(name, default)
        if not isinstance(shape, int) and len(shape) != 1:
            raise ValueError(f"{name}={shape} must have one entry: the model reads sequences")
        fields[field] = shape if isinstance(shape, int) else shape[0]
    fields |= {field: arguments.get(name, 0) or None for name, field in WIDTHS.items()}
    act = arguments.get("ffn_layer", "geglu")
    return RoutingTransformerConfig(**fields, hidden_act=act if act in ("geglu", "none") else "relu")


BODY = r"^sparse_transformer/body/"
LAYER = BODY + r"decoder_layer_(\d+)/self_attention/"
ATTENTION = LAYER + "self_attention/"
KINDS = {
    "cluster_attention/cluster_attention": "routing",
    "cluster_strided_attention/cluster_strided_attention": "strided_routing",
    "strided_attention/strided_attention": "strided",
    "local_nd": "local",
}
AROUND = {
    "layer_prepostprocess": "before_attention",
    "layer_postprocess": "after_attention",
    "layer_prepostprocess_1": "before_mlp",
    "layer_postprocess_1": "after_mlp",
}
# the reference's name of a dense layer -> ours
MLPS = {
    "geglu": {"weight1": "gate_proj", "weight2": "up_proj", "weight3": "down_proj"},
    "relu": {"conv1": "up_proj", "conv2": "down_proj"},
}
# Adafactor's and Adam's slots, the step, and the tables of the metrics
IGNORE = ["global_step", "*/Adafactor*", "*/Adam*", "*_Adafactor*", "training/*", "losses_avg/*", "beta*_power"]


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    """Renames everything; then kernels, which got the ending `.kernel`, are turned into weights."""
    mlp = MLPS["geglu" if arguments.get("ffn_layer", "geglu") == "geglu" else "relu"]
    dense = {
        BODY + "emb_dense/": "model.embeddings.projection.",
        BODY + "final_dense_1/": "head_projection.",
        BODY + "final_dense_2/": "lm_head.",
        **{ATTENTION + f"{name}/": rf"model.layers.\1.attention.{name}_proj." for name in "qkv"},
        ATTENTION + "attention_nd/dense/": r"model.layers.\1.attention.head_dense.",
        ATTENTION + "output_transform/": r"model.layers.\1.attention.o_proj.",
        **{LAYER + f"ffn/{theirs}/": rf"model.layers.\1.mlp.{ours}." for theirs, ours in mlp.items()},
    }
    norms = {BODY + "layer_prepostprocess/layer_norm/layer_norm_": "model.final.norm."}
    norms |= {
        LAYER + f"{theirs}/layer_norm/layer_norm_": rf"model.layers.\1.{ours}.norm." for theirs, ours in AROUND.items()
    }
    heads = {
        ATTENTION + f"attention_nd/{theirs}/": rf"model.layers.\1.attention.{ours}." for theirs, ours in KINDS.items()
    }
    return [
        WeightRenaming(BODY + "embeddings/embedding$", "model.embeddings.token_embeddings.weight"),
        *(WeightRenaming(theirs, ours) for theirs, ours in {**dense, **norms, **heads}.items()),
        WeightRenaming(r"norm\.scale$", "norm.weight"),
        WeightRenaming(r"relative_positions_(keys|values)/embeddings$", r"relative_\1"),
        WeightRenaming("projection_tensors$", "projections"),
        WeightConverter(r"\.kernel$", ".weight", [Transpose(0, 1)]),
    ]
