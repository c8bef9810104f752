"""What makes any network cheaper, and what makes attention cheaper (arXiv 2103.14636)."""

from __future__ import annotations

from . import Entry

LEAVES = {
    "general": (
        "gradient_checkpointing",
        "reversible_layers",
        "parameter_sharing",
        "pruning",
        "knowledge_distillation",
        "mixed_precision",
        "quantization",
        "micro_batching",
        "mixture_of_experts",
        "sample_efficient_objective",
        "architecture_search",
        "conditional_computation",
    ),
    "sparse_attention": (
        "fixed_pattern",
        "window_global",
        "random_global",
        "learned_clustering",
        "lsh",
        "adaptive_span",
    ),
    "factorized_attention": (
        "low_rank_projection",
        "kernel_positive",
        "kernel_random_features",
        "nystrom",
        "fourier_mixing",
    ),
    "architectural_change": (
        "recurrence_memory",
        "compressed_memory",
        "hierarchical_pooling",
        "latent_bottleneck",
        "recurrent_form",
        "state_space",
    ),
    "analysis": ("complexity_report",),
}

# leaf -> entries of the other tables
SHARED = {
    "general/parameter_sharing": ("albert",),
    "general/pruning": ("magnitude_pruning", "movement_pruning", "optin_heads", "attention_dropping", "layer_fusion"),
    "general/knowledge_distillation": (
        "distillation_trainer",
        "hidden_state_distillation",
        "relation_distillation",
        "distilbert",
    ),
    "general/quantization": ("dynamic_int8", "llm_int8", "nf4", "ibert", "bct"),
    "general/architecture_search": ("supernet_slicing", "latency_search", "synflow", "efficient_tdnn"),
    "general/conditional_computation": ("early_exit_drafts", "dynn", "dit_router"),
    "sparse_attention/window_global": ("longformer",),
    "sparse_attention/learned_clustering": ("routing_transformer",),
    "factorized_attention/kernel_positive": ("linear_attention_switch", "gla"),
    "architectural_change/state_space": ("mamba",),
}

ENTRIES = (
    # -- general ------------------------------------------------------------------------------------------------------
    Entry(
        id="gradient_checkpointing",
        leaf="general/gradient_checkpointing",
        title="Keep a layer's input alone and compute the rest again in the backward pass (Chen et al. 2016)",
        provider="transformers",
        target="transformers.PreTrainedModel.gradient_checkpointing_enable",
        stage="training",
        model="llama",
        snippet="""
            def gradient():
                model.zero_grad()
                model.train()(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
                return model.model.layers[0].mlp.up_proj.weight.grad.clone()

            plain = gradient()
            model.gradient_checkpointing_enable()
        """,
        check="torch.allclose(gradient(), plain, atol=1e-6)",
    ),
    Entry(
        id="reversible_stack",
        leaf="general/reversible_layers",
        title="Residual pairs whose inputs follow from their outputs: memory does not grow with depth (RevNet 2017)",
        provider="hf_ext",
        target="hf_ext.layers.reversible.ReversibleSequence",
        stage="design",
        snippet="""
            from hf_ext.layers.reversible import ReversibleSequence
            from torch import nn

            mlp = lambda: nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            stack = ReversibleSequence([(mlp(), mlp()) for _ in range(8)])
            stack(torch.randn(2, 16, 32)).square().mean().backward()
        """,
        check="all(p.grad is not None for p in stack.parameters())",
    ),
    Entry(
        id="reformer",
        leaf="general/reversible_layers",
        title="A language model of reversible layers (Reformer, 2020)",
        provider="transformers",
        target="transformers.ReformerModelWithLMHead",
        stage="design",
        application="text",
        snippet="""
            from transformers import ReformerConfig, ReformerModelWithLMHead

            sizes = dict(hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=64, axial_pos_embds=False)
            config = ReformerConfig(
                vocab_size=100, attn_layers=["local", "local"], is_decoder=True, local_attn_chunk_length=8,
                max_position_embeddings=64, **sizes
            )
            logits = ReformerModelWithLMHead(config).eval()(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 32, 100)",
    ),
    Entry(
        id="shared_layers",
        leaf="general/parameter_sharing",
        title="Layers in place of which another one stands (Universal Transformer 2019, ALBERT 2020)",
        provider="torch",
        target="torch.nn.ModuleList",
        stage="design",
        model="bert",
        snippet="""
            from copy import deepcopy

            changed = deepcopy(model)
            layers = changed.bert.encoder.layer
            layers[1] = layers[0]    # train on from here
        """,
        check="sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())",
    ),
    Entry(
        id="bfloat16",
        leaf="general/mixed_precision",
        title="Weights and products in bfloat16",
        provider="torch",
        target="torch.bfloat16",
        stage="inference",
        model="llama",
        snippet="""
            from copy import deepcopy

            changed = deepcopy(model).to(torch.bfloat16)    # from_pretrained(..., dtype=torch.bfloat16)
        """,
        check="(changed(**inputs).logits - model(**inputs).logits).norm() < 0.05 * model(**inputs).logits.norm()",
    ),
    Entry(
        id="autocast",
        leaf="general/mixed_precision",
        title="Products in bfloat16, weights and sums in float32 (mixed precision, 2018); Trainer: bf16=True",
        provider="torch",
        target="torch.autocast",
        stage="training",
        model="bert",
        snippet="""
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**inputs, labels=labels).loss
            loss.backward()
        """,
        check="model.classifier.weight.grad.dtype == torch.float32 and loss.isfinite()",
    ),
    Entry(
        id="gradient_accumulation",
        leaf="general/micro_batching",
        title="A large batch in small parts (GPipe, 2019); Trainer: gradient_accumulation_steps",
        provider="torch",
        target="torch.autograd.backward",
        stage="training",
        model="bert",
        snippet="""
            model(**inputs, labels=labels).loss.backward()
            whole = model.classifier.weight.grad.clone()
            model.zero_grad()
            for i in range(2):
                part = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
                (model(**part, labels=labels[i : i + 1]).loss / 2).backward()
        """,
        check="torch.allclose(model.classifier.weight.grad, whole, atol=1e-6)",
    ),
    Entry(
        id="sparse_upcycling",
        leaf="general/mixture_of_experts",
        title="Copies of a dense MLP behind a router: the same function, with room to learn (sparse upcycling, 2023)",
        provider="hf_ext",
        target="hf_ext.layers.mixture_of_experts.MixtureOfExperts",
        stage="training",
        model="llama",
        snippet="""
            from copy import deepcopy
            from hf_ext.layers.mixture_of_experts import MixtureOfExperts, load_balance

            changed = deepcopy(model)
            for layer in changed.model.layers:
                layer.mlp = MixtureOfExperts(layer.mlp, config.hidden_size, num_experts=4, top_k=2)
            loss = changed(**inputs, labels=inputs["input_ids"]).loss
            loss = loss + 0.01 * sum(load_balance(layer.mlp.router_logits) for layer in changed.model.layers)
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-5) and loss.requires_grad",
    ),
    Entry(
        id="mixtral",
        leaf="general/mixture_of_experts",
        title="A language model of eight experts, two for each token (Switch 2021, Mixtral 2023)",
        provider="transformers",
        target="transformers.MixtralForCausalLM",
        stage="design",
        application="text",
        snippet="""
            from transformers import MixtralConfig, MixtralForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            config = MixtralConfig(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **sizes)
            logits = MixtralForCausalLM(config).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
        examples=("mistralai/Mixtral-8x7B-v0.1",),
    ),
    Entry(
        id="electra",
        leaf="general/sample_efficient_objective",
        title="Learn from every token: which ones were replaced? (ELECTRA, 2020)",
        provider="transformers",
        target="transformers.ElectraForPreTraining",
        stage="training",
        application="text",
        snippet="""
            from transformers import ElectraConfig, ElectraForPreTraining

            sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            discriminator = ElectraForPreTraining(ElectraConfig(vocab_size=100, **sizes))
            original = torch.randint(3, 100, (4, 16))
            replaced = torch.rand(4, 16) < 0.15
            ids = torch.where(replaced, torch.randint(3, 100, (4, 16)), original)    # a small generator's guesses in earnest
            discriminator(ids, labels=(ids != original).long()).loss.backward()
        """,
        check="discriminator.electra.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0",
        examples=("google/electra-small-discriminator",),
    ),
    Entry(
        id="dualformer",
        leaf="general/conditional_computation",
        title="A reasoner that skips the trace where it can (Dualformer, 2024)",
        provider="hf_ext",
        target="dualformer",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.dualformer import DualformerConfig, DualformerForConditionalGeneration

            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            model = DualformerForConditionalGeneration(DualformerConfig(encoder=sizes, decoder=sizes, vocab_size=100)).eval()
            ids = torch.randint(3, 100, (2, 12))
            logits = model(input_ids=ids, decoder_input_ids=ids).logits
        """,
        check="logits.shape == (2, 12, 100)",
    ),
    # -- sparse attention ---------------------------------------------------------------------------------------------
    Entry(
        id="strided_pattern",
        leaf="sparse_attention/fixed_pattern",
        title="Neighbours and every sixteenth token (Sparse Transformer, 2019)",
        provider="torch",
        target="torch.nn.functional.scaled_dot_product_attention",
        stage="design",
        model="attention",
        snippet="""
            i = torch.arange(256)
            distance = i[:, None] - i
            strided = (distance >= 0) & ((distance < 16) | (distance % 16 == 0))
            output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=strided)
        """,
        check="output.isfinite().all() and strided.float().mean() < 0.1",
    ),
    Entry(
        id="sliding_window",
        leaf="sparse_attention/fixed_pattern",
        title="A window of past tokens, and a cache no longer than that (Mistral, 2023)",
        provider="transformers",
        target="transformers.MistralForCausalLM",
        stage="design",
        application="text",
        snippet="""
            from transformers import MistralConfig, MistralForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
            model = MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=8, **sizes)).eval()
            cache = model(torch.randint(3, 100, (1, 32)), use_cache=True).past_key_values
        """,
        check="cache.layers[0].keys.shape[2] < 32",
        examples=("mistralai/Mistral-7B-v0.1",),
    ),
    Entry(
        id="wide_attention_sparse",
        leaf="sparse_attention/fixed_pattern",
        title="Long Range Arena's encoder with Sparse Transformer's pattern; it has nine more kinds of attention",
        provider="hf_ext",
        target="wide_attention",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.wide_attention import WideAttentionConfig, WideAttentionForSequenceClassification

            sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8, intermediate_size=64)
            config = WideAttentionConfig(attention_type="sparse_transformer", max_position_embeddings=64, **sizes)
            logits = WideAttentionForSequenceClassification(config).eval()(torch.randint(3, 100, (2, 48))).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="window_global_switch",
        leaf="sparse_attention/window_global",
        title="A window and global tokens in a model of any kind; exact where the window covers everything",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.window_global_attention",
        stage="inference",
        model="bert",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.config.window_global = {"window": 16, "num_global": 1}
            changed.set_attn_implementation("window_global")
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-4)",
    ),
    Entry(
        id="bigbird",
        leaf="sparse_attention/random_global",
        title="Window, global and random blocks (BigBird, 2020)",
        provider="transformers",
        target="transformers.BigBirdForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import BigBirdConfig, BigBirdForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=128)
            config = BigBirdConfig(vocab_size=100, attention_type="block_sparse", block_size=8, num_random_blocks=2, **sizes)
            logits = BigBirdForSequenceClassification(config).eval()(torch.randint(3, 100, (2, 96))).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("google/bigbird-roberta-base",),
    ),
    Entry(
        id="routing_switch",
        leaf="sparse_attention/learned_clustering",
        title="Attention within clusters of keys, in a model of any kind (Routing Transformer, 2020)",
        provider="hf_ext",
        target="routing_transformer",
        stage="inference",
        model="bert",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.config.routing = {"num_clusters": 2, "window": 8}
            changed.set_attn_implementation("routing")
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="lsh_attention",
        leaf="sparse_attention/lsh",
        title="Attention among tokens of one hash bucket (Reformer, 2020)",
        provider="transformers",
        target="transformers.ReformerModel",
        stage="design",
        application="text",
        snippet="""
            from transformers import ReformerConfig, ReformerModel

            sizes = dict(hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=64, axial_pos_embds=False)
            config = ReformerConfig(
                vocab_size=100, attn_layers=["lsh"], lsh_attn_chunk_length=8, num_buckets=4, num_hashes=2,
                max_position_embeddings=64, **sizes
            )
            states = ReformerModel(config).eval()(torch.randint(3, 100, (2, 32))).last_hidden_state
        """,
        check="states.shape[:2] == (2, 32)",
    ),
    Entry(
        id="yoso",
        leaf="sparse_attention/lsh",
        title="Attention as samples of hash collisions, its expectation here (YOSO, 2021)",
        provider="transformers",
        target="transformers.YosoForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import YosoConfig, YosoForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64)
            model = YosoForSequenceClassification(YosoConfig(vocab_size=100, use_expectation=True, **sizes)).eval()
            logits = model(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="adaptive_span",
        leaf="sparse_attention/adaptive_span",
        title="A window whose length is learned under a penalty (adaptive attention span, 2019)",
        provider="torch",
        target="torch.nn.Parameter",
        stage="design",
        model="attention",
        snippet="""
            span = torch.nn.Parameter(torch.full((4, 1, 1), 64.0))    # one for each head
            i = torch.arange(256)
            soft = ((span - (i[:, None] - i).abs()) / 16 + 1).clamp(0, 1)    # 1 within the span, 0 beyond span + 16
            weights = (q @ k.mT / 4).softmax(-1) * soft
            output = weights / weights.sum(-1, keepdim=True) @ v
            (output.square().mean() + 1e-3 * span.mean()).backward()
        """,
        check="span.grad.abs().min() > 0",
    ),
    Entry(
        id="prob_sparse",
        leaf="sparse_attention/adaptive_span",
        title="Only queries far from uniform attend (Informer, 2021), in a model of any kind",
        provider="hf_ext",
        target="informer",
        stage="inference",
        model="bert",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.set_attn_implementation("prob_sparse")
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="subsampled_attention",
        leaf="sparse_attention/adaptive_span",
        title="A random part of the keys in every training step (SSA, 2023)",
        provider="hf_ext",
        target="ssa",
        stage="training",
        model="bert",
        snippet="""
            from hf_ext.training.ssa import use_ssa

            use_ssa(model, ratio=4).train()
            model(**inputs, labels=labels).loss.backward()
        """,
        check="model.classifier.weight.grad.abs().sum() > 0",
    ),
    # -- factorized attention -----------------------------------------------------------------------------------------
    Entry(
        id="linformer",
        leaf="factorized_attention/low_rank_projection",
        title="Keys and values projected along the sequence (Linformer, 2020)",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.linformer_attention",
        stage="design",
        model="attention",
        snippet="""
            from hf_ext.ops.efficient_attention import linformer_attention

            projections = torch.nn.Parameter(torch.randn(2, 32, 256) / 16)    # rank 32, for up to 256 tokens
            output = linformer_attention(q, k, v, *projections)
        """,
        check="output.shape == q.shape",
    ),
    Entry(
        id="linformer_model",
        leaf="factorized_attention/low_rank_projection",
        title="An encoder of it, as in the Long Range Arena",
        provider="hf_ext",
        target="wide_attention",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.wide_attention import WideAttentionConfig, WideAttentionForSequenceClassification

            sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8, intermediate_size=64)
            config = WideAttentionConfig(attention_type="linformer", max_position_embeddings=64, **sizes)
            logits = WideAttentionForSequenceClassification(config).eval()(torch.randint(3, 100, (2, 48))).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="linear_attention",
        leaf="factorized_attention/kernel_positive",
        title="Weights as products of positive features, causal or not (Linear Transformer, 2020)",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.linear_attention",
        stage="design",
        model="attention",
        snippet="""
            from hf_ext.ops.efficient_attention import linear_attention

            output = linear_attention(q, k, v, causal=True)
        """,
        check="torch.allclose(output[:, :, 0], v[:, :, 0], atol=1e-5)",
    ),
    Entry(
        id="slab",
        leaf="factorized_attention/kernel_positive",
        title="ReLU as kernel, plus a convolution of the values (SLAB, 2024)",
        provider="hf_ext",
        target="slab",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.slab import SlabConfig, SlabForImageClassification

            sizes = dict(image_size=32, hidden_sizes=[16], depths=[2], linear_depths=[1], num_attention_heads=[2], mlp_ratios=2)
            model = SlabForImageClassification(SlabConfig(window_sizes=3, linear_window_sizes=6, **sizes)).eval()
            logits = model(torch.rand(2, 3, 32, 32)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="rmt",
        leaf="factorized_attention/kernel_positive",
        title="Attention that decays with distance, split by rows and columns (RMT, 2023)",
        provider="hf_ext",
        target="rmt",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.rmt import RMTConfig, RMTForImageClassification

            sizes = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_attention_heads=[2, 2, 3, 4], projection_size=24)
            config = RMTConfig(decomposed=[True, True, False, False], use_layer_scale=[False] * 4, **sizes)
            logits = RMTForImageClassification(config).eval()(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="deltanet",
        leaf="factorized_attention/kernel_positive",
        title="A linear state that overwrites instead of adding (DeltaNet, 2024)",
        provider="hf_ext",
        target="deltanet",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.deltanet import DeltaNetConfig, DeltaNetForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_heads=2)
            logits = DeltaNetForCausalLM(DeltaNetConfig(**sizes)).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
    ),
    Entry(
        id="performer",
        leaf="factorized_attention/kernel_random_features",
        title="Softmax from random features (Performer, 2021)",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.performer_attention",
        stage="design",
        model="attention",
        snippet="""
            from hf_ext.ops.efficient_attention import performer_attention, random_features

            output = performer_attention(q / 2, k / 2, v, random_features(2048, 16))
            exact = torch.nn.functional.scaled_dot_product_attention(q / 2, k / 2, v)
        """,
        check="(output - exact).abs().mean() < 0.05",
    ),
    Entry(
        id="performer_switch",
        leaf="factorized_attention/kernel_random_features",
        title="The same in a model of any kind; needs fine-tuning",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.performer_attention",
        stage="design",
        model="bert",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.config.performer = {"num_features": 256, "seed": 0}
            changed.set_attn_implementation("performer")
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="nystromformer",
        leaf="factorized_attention/nystrom",
        title="Attention through landmarks (Nyströmformer, 2021)",
        provider="transformers",
        target="transformers.NystromformerForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import NystromformerConfig, NystromformerForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64)
            config = NystromformerConfig(vocab_size=100, num_landmarks=8, segment_means_seq_len=32, conv_kernel_size=3, **sizes)
            logits = NystromformerForSequenceClassification(config).eval()(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("uw-madison/nystromformer-512",),
    ),
    Entry(
        id="nystrom_switch",
        leaf="factorized_attention/nystrom",
        title="The same in an encoder of any kind, without a convolution; needs fine-tuning",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.nystrom_attention",
        stage="design",
        model="bert",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.config.nystrom = {"num_landmarks": 8}
            changed.set_attn_implementation("nystrom")
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="fnet",
        leaf="factorized_attention/fourier_mixing",
        title="A Fourier transform in place of attention (FNet, 2022)",
        provider="transformers",
        target="transformers.FNetForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import FNetConfig, FNetForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64)
            logits = FNetForSequenceClassification(FNetConfig(vocab_size=100, **sizes)).eval()(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("google/fnet-base",),
    ),
    # -- architectural change -----------------------------------------------------------------------------------------
    Entry(
        id="segment_recurrence",
        leaf="architectural_change/recurrence_memory",
        title="Segments that read the cache of those before, the last twelve places of it (Transformer-XL, 2019)",
        provider="transformers",
        target="transformers.DynamicCache",
        stage="training",
        application="text",
        model="llama",
        snippet="""
            cache, memory, losses = None, 12, []
            for start, segment in zip(range(0, 16, 4), inputs["input_ids"].split(4, 1)):
                positions = torch.arange(start, start + 4)[None]
                outputs = model(segment, labels=segment, past_key_values=cache, position_ids=positions, use_cache=True)
                losses.append(outputs.loss)
                cache = outputs.past_key_values
                for layer in cache.layers:    # no gradient into the past; rotary positions are relative, so it may be cut
                    layer.keys, layer.values = (x[:, :, -memory:].detach() for x in (layer.keys, layer.values))
            sum(losses).backward()
        """,
        check="cache.get_seq_length() == 12 and model.lm_head.weight.grad.isfinite().all()",
    ),
    Entry(
        id="compressed_cache",
        leaf="architectural_change/compressed_memory",
        title="Old keys and values pooled by four (Compressive Transformer, 2020)",
        provider="transformers",
        target="transformers.DynamicCache",
        stage="inference",
        application="text",
        model="llama",
        snippet="""
            cache = model(**inputs, use_cache=True).past_key_values
            pool = lambda x: torch.nn.functional.avg_pool2d(x, (4, 1))    # along the places
            for layer in cache.layers:
                layer.keys, layer.values = (torch.cat((pool(x[:, :, :8]), x[:, :, 8:]), 2) for x in (layer.keys, layer.values))
            logits = model(torch.tensor([[5], [6]]), past_key_values=cache, position_ids=torch.tensor([[16]])).logits
        """,
        check="cache.get_seq_length() == 2 + 8 + 1 and logits.isfinite().all()",
    ),
    Entry(
        id="funnel",
        leaf="architectural_change/hierarchical_pooling",
        title="A sequence that gets shorter from block to block (Funnel-Transformer, 2020)",
        provider="transformers",
        target="transformers.FunnelBaseModel",
        stage="design",
        application="text",
        snippet="""
            from transformers import FunnelBaseModel, FunnelConfig

            config = FunnelConfig(vocab_size=100, block_sizes=[1, 1, 1], d_model=32, n_head=4, d_head=8, d_inner=64)
            states = FunnelBaseModel(config).eval()(torch.randint(3, 100, (2, 32))).last_hidden_state
        """,
        check="states.shape[1] < 16",
        examples=("funnel-transformer/small-base",),
    ),
    Entry(
        id="perceiver",
        leaf="architectural_change/latent_bottleneck",
        title="A few latents that read the whole input (Set Transformer 2019, Perceiver 2021)",
        provider="transformers",
        target="transformers.PerceiverModel",
        stage="design",
        snippet="""
            from transformers import PerceiverConfig, PerceiverModel

            sizes = dict(num_self_attends_per_block=1, num_self_attention_heads=4, num_cross_attention_heads=4)
            model = PerceiverModel(PerceiverConfig(num_latents=8, d_latents=32, d_model=16, **sizes)).eval()
            latents = model(torch.randn(2, 500, 16)).last_hidden_state
        """,
        check="latents.shape == (2, 8, 32)",
        examples=("deepmind/language-perceiver",),
    ),
    Entry(
        id="pt_dit",
        leaf="architectural_change/latent_bottleneck",
        title="Proxy tokens in a diffusion transformer (PT-DiT, 2024)",
        provider="hf_ext",
        target="pt_dit",
        stage="design",
        application="vision",
    ),
    Entry(
        id="aaren",
        leaf="architectural_change/recurrent_form",
        title="Attention as a recurrence over prefixes (Aaren, 2024)",
        provider="hf_ext",
        target="aaren",
        stage="design",
        application="time series",
        snippet="""
            from hf_ext.models.aaren import AarenConfig, AarenForPrediction

            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            model = AarenForPrediction(AarenConfig(num_input_channels=3, context_length=24, prediction_length=4, **sizes)).eval()
            forecast = model(past_values=torch.randn(2, 24, 3)).prediction_outputs
        """,
        check="forecast.shape == (2, 4, 3)",
    ),
    Entry(
        id="flashrnn",
        leaf="architectural_change/recurrent_form",
        title="LSTM, GRU and sLSTM cells as fast as they can be (FlashRNN, 2024)",
        provider="hf_ext",
        target="flashrnn",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.flashrnn import FlashRNNConfig, FlashRNNForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_heads=2)
            logits = FlashRNNForCausalLM(FlashRNNConfig(function="lstm", **sizes)).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
    ),
    Entry(
        id="rwkv",
        leaf="architectural_change/recurrent_form",
        title="A recurrent network that trains in parallel (RWKV, 2023)",
        provider="transformers",
        target="transformers.RwkvForCausalLM",
        stage="design",
        application="text",
        snippet="""
            from transformers import RwkvConfig, RwkvForCausalLM

            config = RwkvConfig(vocab_size=100, context_length=64, hidden_size=32, num_hidden_layers=2)
            logits = RwkvForCausalLM(config).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
        examples=("RWKV/rwkv-4-169m-pile",),
    ),
    Entry(
        id="mamba2",
        leaf="architectural_change/state_space",
        title="A state space with one decay for each head (Mamba-2, 2024)",
        provider="transformers",
        target="transformers.Mamba2ForCausalLM",
        stage="design",
        application="text",
        snippet="""
            from transformers import Mamba2Config, Mamba2ForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, state_size=8, head_dim=8, num_heads=8, n_groups=1, num_hidden_layers=2)
            logits = Mamba2ForCausalLM(Mamba2Config(chunk_size=8, **sizes)).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
    ),
    Entry(
        id="tcnca",
        leaf="architectural_change/state_space",
        title="Dilated convolutions in place of a state, with attention in chunks (TCNCA, 2023)",
        provider="hf_ext",
        target="tcnca",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.tcnca import TCNCAConfig, TCNCAForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, z_dim=16, v_dim=48, intermediate_size=48, num_hidden_layers=2)
            config = TCNCAConfig(chunk_size=8, kernel_size=3, dilation_factor=2, depth=3, **sizes)
            logits = TCNCAForCausalLM(config).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
    ),
    # -- analysis -----------------------------------------------------------------------------------------------------
    Entry(
        id="complexity_report",
        leaf="analysis/complexity_report",
        title="Operations and memory of attention families for a model's sizes, by length",
        provider="hf_ext",
        target="hf_ext.techniques.complexity.complexity_report",
        stage="design",
        model="bert",
        snippet="""
            from hf_ext.techniques.complexity import complexity_report

            report = complexity_report(model, lengths=(512, 8192), window=128)
            operations, mib = report["full"][8192]
        """,
        check="report['window'][8192][0] < operations and report['linear'][8192][1] < mib",
    ),
)
