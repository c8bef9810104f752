"""How to make inference cheaper, from distillation to hardware (arXiv 2307.07982)."""

from __future__ import annotations

from . import Entry

LEAVES = {
    "distillation": ("response", "feature", "attention", "relation", "data_free", "vision"),
    "pruning": (
        "unstructured_magnitude",
        "movement_first_order",
        "second_order",
        "semi_structured_2_4",
        "head",
        "neuron",
        "layer",
        "block",
        "token_pruning",
        "token_merging",
        "training_free",
    ),
    "quantization": (
        "ptq_dynamic_int8",
        "ptq_static_int8",
        "qat",
        "outlier_mixed_int8",
        "smoothquant",
        "weight_only_4bit",
        "second_order_weight",
        "binary_ternary",
        "integer_only",
        "block_floating",
        "kv_cache",
    ),
    "nas": ("supernet_search", "hardware_aware", "zero_cost"),
    "lightweight": (
        "hybrid_cnn_transformer",
        "linear_attention",
        "sparse_attention",
        "weight_sharing",
        "early_exit",
        "dynamic_token_routing",
    ),
    "hardware": (
        "fused_attention",
        "fused_norm_mlp",
        "variable_length",
        "compile_graph",
        "cpu_runtime",
        "sparse_kernels",
        "memory_offload",
        "kv_cache_management",
        "speculative_decoding",
        "browser",
        "accelerator_simulation",
    ),
}

ENTRIES = (
    # -- distillation -------------------------------------------------------------------------------------------------
    Entry(
        id="distillation_trainer",
        leaf="distillation/response",
        title="Train on a teacher's logits (Hinton et al. 2015, DistilBERT 2019)",
        provider="hf_ext",
        target="hf_ext.training.distillation.DistillationTrainer",
        stage="training",
        model="teacher",
        snippet="""
            from hf_ext.training.distillation import DistillationTrainer
            from transformers import TrainingArguments

            rows = [{"input_ids": ids, "labels": label} for ids, label in zip(inputs["input_ids"], labels)]
            arguments = TrainingArguments("student", max_steps=3, report_to="none", save_strategy="no", disable_tqdm=True)
            result = DistillationTrainer(
                model=student, teacher=teacher, temperature=2.0, alpha=0.7, args=arguments, train_dataset=rows
            ).train()
        """,
        check="result.global_step == 3 and result.training_loss > 0",
    ),
    Entry(
        id="distilbert",
        leaf="distillation/response",
        title="A model that was distilled already: DistilBERT (Sanh et al. 2019)",
        provider="transformers",
        target="transformers.DistilBertForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import DistilBertConfig, DistilBertForSequenceClassification

            config = DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
            logits = DistilBertForSequenceClassification(config)(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("distilbert/distilbert-base-uncased",),
    ),
    Entry(
        id="hidden_state_distillation",
        leaf="distillation/feature",
        title="Match hidden states through a learned projection (FitNets 2015, TinyBERT 2020)",
        provider="hf_ext",
        target="hf_ext.training.distillation.feature_loss",
        stage="training",
        model="teacher",
        snippet="""
            from hf_ext.training.distillation import feature_loss

            projection = torch.nn.Linear(smaller.hidden_size, config.hidden_size)
            states = [m(**inputs, output_hidden_states=True).hidden_states[-1] for m in (student, teacher)]
            feature_loss(states[0], states[1].detach(), projection).backward()
        """,
        check="projection.weight.grad.abs().sum() > 0",
    ),
    Entry(
        id="attention_distillation",
        leaf="distillation/attention",
        title="Match attention maps (TinyBERT 2020, MiniLM 2020)",
        provider="hf_ext",
        target="hf_ext.training.distillation.attention_loss",
        stage="training",
        model="teacher",
        snippet="""
            from hf_ext.training.distillation import attention_loss

            for m in (student, teacher):
                m.set_attn_implementation("eager")    # the fused kinds keep no maps
            maps = [m(**inputs, output_attentions=True).attentions[-1] for m in (student, teacher)]
            loss = attention_loss(maps[0], maps[1].detach())
        """,
        check="loss >= 0 and loss.requires_grad",
    ),
    Entry(
        id="relation_distillation",
        leaf="distillation/relation",
        title="Match token-to-token relations of any two widths (MiniLMv2, 2021)",
        provider="hf_ext",
        target="hf_ext.training.distillation.relation_loss",
        stage="training",
        model="teacher",
        snippet="""
            from hf_ext.training.distillation import relation_loss

            states = [m(**inputs, output_hidden_states=True).hidden_states[-1] for m in (student, teacher)]
            loss = relation_loss(states[0], states[1].detach(), heads=4)
        """,
        check="loss >= 0 and loss.requires_grad",
    ),
    Entry(
        id="data_free_distillation",
        leaf="distillation/data_free",
        title="Distil on random inputs; weak, for when there is no data at all",
        provider="torch",
        target="torch.nn.functional.kl_div",
        stage="training",
        model="teacher",
        snippet="""
            optimizer, losses = torch.optim.AdamW(student.parameters(), lr=3e-3), []
            for _ in range(20):
                ids = torch.randint(3, 100, (16, 16))
                student_logits, teacher_logits = student(ids).logits.log_softmax(-1), teacher(ids).logits.log_softmax(-1).detach()
                losses.append(torch.nn.functional.kl_div(student_logits, teacher_logits, reduction="batchmean", log_target=True))
                losses[-1].backward()
                optimizer.step()
                optimizer.zero_grad()
        """,
        check="sum(losses[-5:]) < sum(losses[:5])",
    ),
    Entry(
        id="distillation_token",
        leaf="distillation/vision",
        title="A token that learns from a convolutional teacher's decisions (DeiT, 2021)",
        provider="transformers",
        target="transformers.DeiTForImageClassificationWithTeacher",
        stage="training",
        application="vision",
        snippet="""
            from hf_ext.training.distillation import distillation_loss
            from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ResNetConfig, ResNetForImageClassification

            sizes = dict(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            student = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes))
            teacher = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).eval()
            pictures, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
            loss = distillation_loss(student(pictures).distillation_logits, teacher(pictures).logits.detach(), labels, hard=True)
        """,
        check="loss.isfinite() and loss.requires_grad",
        examples=("facebook/deit-base-distilled-patch16-224",),
    ),
    # -- pruning ------------------------------------------------------------------------------------------------------
    Entry(
        id="magnitude_pruning",
        leaf="pruning/unstructured_magnitude",
        title="Zero the smallest weights of the whole model (Han et al. 2015, Gordon et al. 2020)",
        provider="torch",
        target="torch.nn.utils.prune.global_unstructured",
        model="bert",
        snippet="""
            from copy import deepcopy
            from torch.nn.utils import prune

            changed = deepcopy(model)
            weights = [(module, "weight") for module in changed.bert.encoder.modules() if isinstance(module, torch.nn.Linear)]
            prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)
            for module, name in weights:
                prune.remove(module, name)    # ordinary weights again, half of them 0
        """,
        check="abs(sum((m.weight == 0).sum() for m, _ in weights) / sum(m.weight.numel() for m, _ in weights) - 0.5) < 0.01",
    ),
    Entry(
        id="movement_pruning",
        leaf="pruning/movement_first_order",
        title="Zero what training moves towards 0 (movement pruning, Sanh et al. 2020)",
        provider="torch",
        target="torch.nn.utils.prune.l1_unstructured",
        stage="training",
        model="bert",
        snippet="""
            from torch.nn.utils import prune

            model(**inputs, labels=labels).loss.backward()
            linear = model.bert.encoder.layer[0].intermediate.dense
            scores = -linear.weight * linear.weight.grad    # summed up over the steps of a fine-tuning
            prune.l1_unstructured(linear, "weight", amount=0.5, importance_scores=scores - scores.min())
        """,
        check="(linear.weight == 0).float().mean() == 0.5",
    ),
    Entry(
        id="fisher_pruning",
        leaf="pruning/second_order",
        title="Zero what the loss feels least, by the diagonal Fisher information (oBERT 2022, Kwon et al. 2022)",
        provider="torch",
        target="torch.nn.utils.prune.l1_unstructured",
        model="bert",
        snippet="""
            from torch.nn.utils import prune

            model(**inputs, labels=labels).loss.backward()
            linear = model.bert.encoder.layer[0].intermediate.dense
            prune.l1_unstructured(linear, "weight", amount=0.5, importance_scores=(linear.weight * linear.weight.grad) ** 2)
        """,
        check="(linear.weight == 0).float().mean() == 0.5",
    ),
    Entry(
        id="two_of_four",
        leaf="pruning/semi_structured_2_4",
        title="Two of every four weights (2:4); a GPU's tensor cores skip the zeros, a CPU does not",
        provider="hf_ext",
        target="hf_ext.layers.compression.mask_2_4",
        model="bert",
        snippet="""
            from hf_ext.layers.compression import mask_2_4
            from torch.nn.utils import prune

            linear = model.bert.encoder.layer[0].intermediate.dense
            prune.custom_from_mask(linear, "weight", mask_2_4(linear.weight))
        """,
        check="((linear.weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()",
    ),
    Entry(
        id="head_importance",
        leaf="pruning/head",
        title="Mask the attention head whose removal the loss feels least (Michel et al. 2019, Voita et al. 2019)",
        provider="torch",
        target="torch.nn.utils.prune.custom_from_mask",
        model="bert",
        snippet="""
            from torch.nn.utils import prune

            model(**inputs, labels=labels).loss.backward()
            output = model.bert.encoder.layer[0].attention.output.dense    # eight columns read each of the four heads
            importance = (output.weight * output.weight.grad).sum(0).unflatten(0, (4, -1)).sum(1).abs()
            kept = (importance > importance.min()).repeat_interleave(8).float().expand_as(output.weight)
            prune.custom_from_mask(output, "weight", kept)
        """,
        check="(output.weight.abs().sum(0) == 0).sum() == 8",
    ),
    Entry(
        id="optin_heads",
        leaf="pruning/head",
        title="Remove heads and neurons by how they change the trajectory of features (OPTIN, 2024)",
        provider="hf_ext",
        target="optin",
        model="bert",
        snippet="""
            from hf_ext.surgery import compress

            changed = compress(model, ["optin:flops=0.6"], [inputs | {"labels": labels}])
        """,
        check="sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())",
    ),
    Entry(
        id="neuron_removal",
        leaf="pruning/neuron",
        title="Remove the hidden neurons of least norm: layers really get narrower",
        provider="transformers",
        target="transformers.pytorch_utils.prune_linear_layer",
        model="bert",
        snippet="""
            from copy import deepcopy
            from hf_ext.layers.compression import row_mask
            from transformers.pytorch_utils import prune_linear_layer

            changed = deepcopy(model)
            for layer in changed.bert.encoder.layer:
                kept = row_mask(layer.intermediate.dense.weight, 0.5)[:, 0].nonzero()[:, 0]
                layer.intermediate.dense = prune_linear_layer(layer.intermediate.dense, kept)
                layer.output.dense = prune_linear_layer(layer.output.dense, kept, dim=1)
        """,
        check="changed.bert.encoder.layer[0].intermediate.dense.out_features == 32",
    ),
    Entry(
        id="attention_dropping",
        leaf="pruning/layer",
        title="Delete the attention layers that change their input least (LLM-Drop, 2024; ShortGPT, 2024)",
        provider="hf_ext",
        target="llm_drop",
        model="llama",
        snippet="""
            from hf_ext.surgery import apply
            from hf_ext.surgery.llm_drop import choose, compute_similarities

            similarities = compute_similarities(model, [inputs])
            changed = apply(model, choose(similarities, 2))    # two of the four attentions, with their cache
        """,
        check="sum(layer.self_attn is None for layer in changed.model.layers) == 2",
    ),
    Entry(
        id="layer_fusion",
        leaf="pruning/layer",
        title="Fold a layer into its neighbours with learned weights (FuseGPT, 2024)",
        provider="hf_ext",
        target="fusegpt",
        model="llama",
        snippet="""
            from hf_ext.surgery import compress

            changed = compress(model, ["fusegpt"], [inputs | {"labels": inputs["input_ids"]}])
        """,
        check="sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())",
    ),
    Entry(
        id="block_dropping",
        leaf="pruning/block",
        title="Delete whole blocks of attention and MLP",
        provider="hf_ext",
        target="llm_drop",
        model="llama",
        snippet="""
            from hf_ext.surgery import apply
            from hf_ext.surgery.llm_drop import choose, compute_similarities

            similarities = compute_similarities(model, [inputs])
            changed = apply(model, choose(similarities, 1, target="block"))
        """,
        check="sum(layer.mlp is None for layer in changed.model.layers) == 1",
    ),
    Entry(
        id="block_magnitude",
        leaf="pruning/block",
        title="Zero the 8 x 8 blocks of least norm (block pruning, Lagunas et al. 2021)",
        provider="torch",
        target="torch.nn.utils.prune.custom_from_mask",
        model="bert",
        snippet="""
            from torch.nn.utils import prune

            linear = model.bert.encoder.layer[0].intermediate.dense
            norms = linear.weight.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).square().sum((1, 3))
            kept = (norms > norms.median()).float().repeat_interleave(8, 0).repeat_interleave(8, 1)
            prune.custom_from_mask(linear, "weight", kept)
        """,
        check="(linear.weight == 0).float().mean() == 0.5",
    ),
    Entry(
        id="token_dropping",
        leaf="pruning/token_pruning",
        title="Between two layers, keep the tokens that receive most attention (PoWER-BERT 2020, LTP 2022)",
        provider="torch",
        target="torch.topk",
        stage="inference",
        model="bert",
        snippet="""
            model.set_attn_implementation("eager")
            outputs = model.bert(**inputs, output_attentions=True, output_hidden_states=True)
            kept = outputs.attentions[0].mean((1, 2)).topk(8).indices.sort().values
            shorter = outputs.hidden_states[1].take_along_dim(kept[..., None], 1)
            last = model.bert.encoder.layer[1](shorter)
        """,
        check="(last[0] if isinstance(last, tuple) else last).shape == (2, 8, 32)",
    ),
    Entry(
        id="token_routing",
        leaf="pruning/token_pruning",
        title="Tokens that a learned router sends past a block (dynamic token routing, 2024)",
        provider="hf_ext",
        target="dit_router",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.dit_router import DynamicTokenRoutingConfig, DynamicTokenRoutingForImageClassification

            sizes = dict(hidden_sizes=[8, 12, 16, 24], num_attention_heads=[1, 2, 2, 3], depths=[1, 1, 2, 1], num_labels=4)
            model = DynamicTokenRoutingForImageClassification(DynamicTokenRoutingConfig(mlp_ratios=[2, 2, 2, 2], **sizes)).eval()
            logits = model(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 4)",
    ),
    Entry(
        id="token_merging",
        leaf="pruning/token_merging",
        title="Merge the most similar tokens between layers (ToMe, 2023)",
        provider="hf_ext",
        target="hf_ext.layers.compression.merge_tokens",
        stage="inference",
        application="vision",
        model="vit",
        snippet="""
            from hf_ext.layers.compression import merge_tokens

            tokens = model.vit.embeddings(inputs["pixel_values"])    # a class token and 16 patches
            merged, size = merge_tokens(tokens, merge=4)
            merged, size = merge_tokens(merged, merge=4, size=size)
        """,
        check="merged.shape[1] == 9 and (size.sum(1) == 17).all()",
    ),
    Entry(
        id="optin",
        leaf="pruning/training_free",
        title="Prune to a budget of operations without any training (OPTIN, 2024)",
        provider="hf_ext",
        target="optin",
        application="vision",
        model="vit",
        snippet="""
            from hf_ext.surgery import compress

            changed = compress(model, ["optin:flops=0.6"], [inputs | {"labels": torch.tensor([0, 1])}])
        """,
        check="sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())",
    ),
    Entry(
        id="training_free_dropping",
        leaf="pruning/training_free",
        title="Delete MLPs by one pass over a calibration, without any training (LLM-Drop, 2024)",
        provider="hf_ext",
        target="llm_drop",
        model="llama",
        snippet="""
            from hf_ext.surgery import apply
            from hf_ext.surgery.llm_drop import choose, compute_similarities

            changed = apply(model, choose(compute_similarities(model, [inputs]), 1, target="mlp"))
        """,
        check="sum(layer.mlp is None for layer in changed.model.layers) == 1",
    ),
    # -- quantization -------------------------------------------------------------------------------------------------
    Entry(
        id="dynamic_int8",
        leaf="quantization/ptq_dynamic_int8",
        title="8-bit weights, activations rounded as they come; CPU",
        provider="torch",
        target="torch.ao.quantization.quantize_dynamic",
        hardware="cpu",
        model="bert",
        snippet="""
            from torch.ao.quantization import quantize_dynamic

            changed = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        """,
        check="(changed(**inputs).logits - model(**inputs).logits).abs().max() < 0.05",
    ),
    Entry(
        id="onnx_dynamic_int8",
        leaf="quantization/ptq_dynamic_int8",
        title="The same by ONNX Runtime, in the exported model",
        provider="onnxruntime",
        target="transformers.exporters.OnnxRuntimeQuantizer",
        hardware="cpu",
        needs=("onnx", "onnxruntime", "onnxscript"),
        quick=False,
        model="bert",
        snippet="""
            from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

            config = OnnxConfig(quantizer=OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig()))
            exported = OnnxExporter().export(model, inputs, config)
            logits = exported(**inputs).logits
        """,
        check="(logits - model(**inputs).logits).abs().max() < 0.05",
    ),
    Entry(
        id="static_int8",
        leaf="quantization/ptq_static_int8",
        title="8-bit weights and activations with ranges from a calibration, by ONNX Runtime",
        provider="onnxruntime",
        target="transformers.exporters.OnnxRuntimeQuantizer",
        hardware="cpu",
        needs=("onnx", "onnxruntime", "onnxscript"),
        quick=False,
        model="vit",
        snippet="""
            from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

            quantizer = OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(per_channel=True), calibration_dataset=[inputs])
            exported = OnnxExporter().export(model, inputs, OnnxConfig(quantizer=quantizer))
            logits = exported(**inputs).logits
        """,
        check="(logits - model(**inputs).logits).abs().max() < 0.1",
    ),
    Entry(
        id="static_int8_simulated",
        leaf="quantization/ptq_static_int8",
        title="What static 8 bits do to a linear layer, in float arithmetic",
        provider="hf_ext",
        target="hf_ext.layers.compression.fake_quantize_activation",
        model="linear",
        snippet="""
            from hf_ext.layers.compression import fake_quantize_activation, fake_quantize_weight

            rounded = torch.nn.functional.linear(fake_quantize_activation(inputs), fake_quantize_weight(model.weight), model.bias)
            error = (rounded - model(inputs)).norm() / model(inputs).norm()
        """,
        check="error < 0.02",
    ),
    Entry(
        id="quantization_aware_training",
        leaf="quantization/qat",
        title="Train through rounded weights (Q8BERT, 2019)",
        provider="torch",
        target="torch.nn.utils.parametrize.register_parametrization",
        stage="training",
        model="bert",
        snippet="""
            from hf_ext.layers.compression import fake_quantize_weight
            from torch.nn.utils import parametrize

            class Rounded(torch.nn.Module):
                def forward(self, weight):
                    return fake_quantize_weight(weight)

            for linear in [m for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]:
                parametrize.register_parametrization(linear, "weight", Rounded())
            model(**inputs, labels=labels).loss.backward()    # parametrize.remove_parametrizations leaves the rounded weights
        """,
        check="linear.parametrizations.weight.original.grad.abs().sum() > 0 and len(linear.weight[0].unique()) <= 255",
    ),
    Entry(
        id="llm_int8",
        leaf="quantization/outlier_mixed_int8",
        title="8-bit products, outlier channels in half precision (LLM.int8(), 2022)",
        provider="bitsandbytes",
        target="transformers.BitsAndBytesConfig",
        model="llama",
        snippet="""
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig

            model.save_pretrained("dense")
            changed = AutoModelForCausalLM.from_pretrained("dense", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
        """,
        check="changed.model.layers[0].mlp.up_proj.weight.dtype == torch.int8",
    ),
    Entry(
        id="smoothquant",
        leaf="quantization/smoothquant",
        title="Move outliers of activations into the weights, through the norm before them (SmoothQuant, 2023)",
        provider="hf_ext",
        target="hf_ext.layers.compression.smooth_scale",
        model="llama",
        snippet="""
            from copy import deepcopy
            from hf_ext.layers.compression import smooth_scale

            changed = deepcopy(model)
            layer = changed.model.layers[0]
            readers = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            entering = layer.input_layernorm(changed.model.embed_tokens(inputs["input_ids"]))
            scale = smooth_scale(entering, torch.cat([reader.weight for reader in readers]))
            layer.input_layernorm.weight.data /= scale
            for reader in readers:
                reader.weight.data *= scale
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="nf4",
        leaf="quantization/weight_only_4bit",
        title="4-bit weights in the NF4 format (QLoRA, 2023)",
        provider="bitsandbytes",
        target="transformers.BitsAndBytesConfig",
        model="llama",
        snippet="""
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig

            model.save_pretrained("dense")
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
            changed = AutoModelForCausalLM.from_pretrained("dense", quantization_config=config)
        """,
        check="changed.model.layers[0].mlp.up_proj.weight.numel() * 2 == model.model.layers[0].mlp.up_proj.weight.numel()",
    ),
    Entry(
        id="qlora",
        leaf="quantization/weight_only_4bit",
        title="Adapters on frozen 4-bit weights (QLoRA, 2023)",
        provider="peft",
        target="peft.LoraConfig",
        stage="training",
        model="llama",
        snippet="""
            from peft import LoraConfig, get_peft_model
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig

            model.save_pretrained("dense")
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
            small = AutoModelForCausalLM.from_pretrained("dense", quantization_config=config)
            adapted = get_peft_model(small, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
            adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        """,
        check="any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters())",
    ),
    Entry(
        id="hqq",
        leaf="quantization/weight_only_4bit",
        title="4-bit weights without a calibration (HQQ, 2023)",
        provider="transformers",
        target="transformers.HqqConfig",
        needs=("hqq",),
        model="llama",
        snippet="""
            from transformers import AutoModelForCausalLM, HqqConfig

            model.save_pretrained("dense")
            changed = AutoModelForCausalLM.from_pretrained("dense", quantization_config=HqqConfig(nbits=4, group_size=32))
        """,
        quick=False,
    ),
    Entry(
        id="error_compensation",
        leaf="quantization/second_order_weight",
        title="Round column by column and let the later ones make up for it (optimal brain quantization, GPTQ, 2023)",
        provider="torch",
        target="torch.linalg.cholesky",
        model="linear",
        snippet="""
            inputs = inputs @ torch.randn(64, 64)    # correlated channels: where it pays
            weight, scale = model.weight.detach().clone(), model.weight.detach().abs().amax(1, keepdim=True) / 7
            plain, rounded = (weight / scale).round().clamp(-7, 7) * scale, torch.zeros_like(weight)
            hessian = inputs.T @ inputs + 0.01 * (inputs**2).sum(0).mean() * torch.eye(64)
            inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
            for j in range(64):
                rounded[:, j] = (weight[:, j] / scale[:, 0]).round().clamp(-7, 7) * scale[:, 0]
                error = (weight[:, j] - rounded[:, j]) / inverse[j, j]
                weight[:, j:] -= error[:, None] * inverse[j, j:]
            errors = [(inputs @ (w - model.weight).T).norm() for w in (plain, rounded)]
        """,
        check="errors[1] < 0.8 * errors[0]",
    ),
    Entry(
        id="gptq",
        leaf="quantization/second_order_weight",
        title="The same for a whole model, with packed weights (GPTQ, 2023)",
        provider="transformers",
        target="transformers.GPTQConfig",
        hardware="gpu",
        needs=("gptqmodel", "optimum"),
        model="llama",
        snippet="""
            from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

            tokenizer = AutoTokenizer.from_pretrained("dense")    # your folder, with its tokenizer
            config = GPTQConfig(bits=4, dataset="c4", tokenizer=tokenizer)
            changed = AutoModelForCausalLM.from_pretrained("dense", quantization_config=config)
        """,
        quick=False,
    ),
    Entry(
        id="bitnet",
        leaf="quantization/binary_ternary",
        title="Weights of -1, 0 and 1 (TernaryBERT 2020, BitNet b1.58 2024)",
        provider="transformers",
        target="transformers.integrations.bitnet.AutoBitLinear",
        stage="training",
        quick=False,
        model="linear",
        snippet="""
            from transformers.integrations.bitnet import AutoBitLinear

            ternary = AutoBitLinear(64, 64, bias=False, online_quant=True)    # rounds as it goes, straight-through gradient
            ternary(inputs).square().mean().backward()
        """,
        check="ternary.weight.grad.abs().sum() > 0",
    ),
    Entry(
        id="ternary_weights",
        leaf="quantization/binary_ternary",
        title="The rounding itself: mean magnitude times -1, 0 or 1",
        provider="torch",
        target="torch.round",
        model="linear",
        snippet="""
            scale = model.weight.abs().mean()
            ternary = (model.weight / scale).round().clamp(-1, 1)
        """,
        check="set(ternary.unique().tolist()) <= {-1.0, 0.0, 1.0}",
    ),
    Entry(
        id="ibert",
        leaf="quantization/integer_only",
        title="Integer GELU, softmax and LayerNorm (I-BERT, 2021)",
        provider="transformers",
        target="transformers.IBertForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import IBertConfig, IBertForSequenceClassification

            sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            model = IBertForSequenceClassification(IBertConfig(quant_mode=True, **sizes)).eval()
            logits = model(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.isfinite().all()",
        examples=("kssteven/ibert-roberta-base",),
    ),
    Entry(
        id="bct",
        leaf="quantization/block_floating",
        title="Blocks of integers with one shift each, activations included (BCT, 2023)",
        provider="hf_ext",
        target="bct",
        model="bert",
        snippet="""
            from hf_ext.surgery.bct import BCTConfig
            from transformers import AutoModelForSequenceClassification

            model.save_pretrained("dense")
            changed = AutoModelForSequenceClassification.from_pretrained("dense", quantization_config=BCTConfig())
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="block_floating_point",
        leaf="quantization/block_floating",
        title="Blocks of 32 weights with one exponent (MX formats), in float arithmetic",
        provider="torch",
        target="torch.frexp",
        model="linear",
        snippet="""
            blocks = model.weight.detach().unflatten(1, (-1, 32))
            exponent = blocks.abs().amax(-1, keepdim=True).frexp().exponent
            rounded = ((blocks / 2.0**exponent * 128).round().clamp(-128, 127) / 128 * 2.0**exponent).flatten(1)
        """,
        check="(rounded - model.weight).abs().max() < 0.01 * model.weight.abs().max()",
    ),
    Entry(
        id="quantized_cache",
        leaf="quantization/kv_cache",
        title="Keys and values in 2 or 4 bits while generating (KIVI-like)",
        provider="transformers",
        target="transformers.QuantizedCache",
        stage="inference",
        needs=("optimum",),
        model="llama",
        snippet="""
            settings = {"backend": "quanto", "nbits": 4}
            tokens = model.generate(**inputs, max_new_tokens=8, cache_implementation="quantized", cache_config=settings)
        """,
        quick=False,
    ),
    Entry(
        id="rounded_cache",
        leaf="quantization/kv_cache",
        title="What an 8-bit cache does to the next token, in float arithmetic",
        provider="hf_ext",
        target="hf_ext.layers.compression.fake_quantize_activation",
        stage="inference",
        model="llama",
        snippet="""
            from hf_ext.layers.compression import fake_quantize_activation

            ids = inputs["input_ids"]
            cache = model(ids[:, :-1], use_cache=True).past_key_values
            for layer in cache.layers:
                layer.keys, layer.values = fake_quantize_activation(layer.keys), fake_quantize_activation(layer.values)
            error = (model(ids[:, -1:], past_key_values=cache).logits - model(ids).logits[:, -1:]).abs().max()
        """,
        check="error < 0.01",
    ),
    # -- architecture search ------------------------------------------------------------------------------------------
    Entry(
        id="supernet_slicing",
        leaf="nas/supernet_search",
        title="Smaller networks as slices of a large one's weights (HAT 2020, AutoFormer 2021)",
        provider="torch",
        target="torch.nn.Module.load_state_dict",
        stage="design",
        model="bert",
        snippet="""
            from transformers import AutoConfig

            sizes = config.to_dict() | {"num_hidden_layers": 1, "intermediate_size": 32}
            changed = BertForSequenceClassification(BertConfig.from_dict(sizes)).eval()
            whole = model.state_dict()
            changed.load_state_dict({n: whole[n][tuple(map(slice, x.shape))] for n, x in changed.state_dict().items()})
        """,
        check="sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in model.parameters())",
    ),
    Entry(
        id="efficient_tdnn",
        leaf="nas/supernet_search",
        title="A supernet and its search for speaker recognition (EfficientTDNN, 2021)",
        provider="hf_ext",
        target="efficient_tdnn",
        stage="design",
        application="audio",
    ),
    Entry(
        id="latency_search",
        leaf="nas/hardware_aware",
        title="Measure candidates on the machine itself, keep the largest that is fast enough (HAT, 2020)",
        provider="hf_ext",
        target="hf_ext.techniques.measure.latency",
        stage="design",
        model="bert",
        snippet="""
            from hf_ext.techniques.measure import latency

            candidates = [BertConfig.from_dict(config.to_dict() | {"num_hidden_layers": n}) for n in (1, 2, 4)]
            table = {c.num_hidden_layers: latency(BertForSequenceClassification(c).eval(), inputs) for c in candidates}
            chosen = max(n for n, seconds in table.items() if seconds <= max(table.values()))
        """,
        check="len(table) == 3 and all(seconds > 0 for seconds in table.values())",
    ),
    Entry(
        id="efficientformer",
        leaf="nas/hardware_aware",
        title="An architecture slimmed by measured latency (EfficientFormer, 2022)",
        provider="hf_ext",
        target="efficientformer",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.efficientformer import EfficientFormerConfig, EfficientFormerForImageClassification

            sizes = dict(depths=[1, 1, 2, 2], hidden_sizes=[8, 12, 16, 24], num_attention_heads=2, key_dim=8, num_labels=4)
            model = EfficientFormerForImageClassification(EfficientFormerConfig(resolution=2, bias_resolution=2, **sizes)).eval()
            logits = model.fuse()(torch.rand(2, 3, 64, 64)).logits    # from_preset("efficientformer-l1") is the published one
        """,
        check="logits.shape == (2, 4)",
    ),
    Entry(
        id="synflow",
        leaf="nas/zero_cost",
        title="Rank untrained candidates by one backward pass (SynFlow, DSS; TF-TAS 2022)",
        provider="torch",
        target="torch.autograd.backward",
        stage="design",
        model="bert",
        snippet="""
            def synflow(config):
                torch.manual_seed(0)
                candidate = BertForSequenceClassification(config)
                for parameter in candidate.parameters():
                    parameter.data.abs_()
                candidate(**inputs).logits.sum().backward()
                return sum((p * p.grad).abs().sum() for p in candidate.parameters() if p.grad is not None).item()

            scores = {n: synflow(BertConfig.from_dict(config.to_dict() | {"intermediate_size": n})) for n in (16, 64)}
        """,
        check="all(score > 0 for score in scores.values())",
    ),
    # -- lightweight design -------------------------------------------------------------------------------------------
    Entry(
        id="mobilevit",
        leaf="lightweight/hybrid_cnn_transformer",
        title="Convolutions with attention between them (MobileViT, 2022)",
        provider="transformers",
        target="transformers.MobileViTForImageClassification",
        stage="design",
        application="vision",
        snippet="""
            from transformers import MobileViTConfig, MobileViTForImageClassification

            sizes = dict(image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_attention_heads=4)
            logits = MobileViTForImageClassification(MobileViTConfig(**sizes)).eval()(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("apple/mobilevit-small",),
    ),
    Entry(
        id="nextvit",
        leaf="lightweight/hybrid_cnn_transformer",
        title="Convolution and transformer blocks in turn, made for deployment (Next-ViT, 2022)",
        provider="hf_ext",
        target="nextvit",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.nextvit import NextViTConfig, NextViTForImageClassification

            sizes = dict(stem_sizes=[8, 8, 16], hidden_sizes=[16, 32, 32, 32], out_sizes=[16, 64, 64, 64], depths=[1, 2, 5, 1])
            model = NextViTForImageClassification(NextViTConfig(head_dim=16, mix_block_ratio=0.5, **sizes)).eval()
            logits = model(torch.rand(2, 3, 64, 64)).logits
        """,
        check="logits.shape == (2, 2)",
    ),
    Entry(
        id="linear_attention_switch",
        leaf="lightweight/linear_attention",
        title="Linear attention in a model of any kind; needs fine-tuning (Linear Transformer, 2020)",
        provider="hf_ext",
        target="hf_ext.ops.efficient_attention.linear_attention",
        stage="design",
        model="llama",
        snippet="""
            from copy import deepcopy
            import hf_ext

            changed = deepcopy(model)
            changed.set_attn_implementation("linear_elu")
        """,
        check="changed(**inputs).logits.isfinite().all()",
    ),
    Entry(
        id="gla",
        leaf="lightweight/linear_attention",
        title="A language model of gated linear attention (GLA, 2023)",
        provider="hf_ext",
        target="gla",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.gla import GLAConfig, GLAForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_heads=4)
            model = GLAForCausalLM(GLAConfig(**sizes, pad_token_id=0, eos_token_id=2)).eval()
            tokens = model.generate(torch.randint(3, 100, (1, 8)), max_new_tokens=4, do_sample=False)
        """,
        check="tokens.shape[1] <= 12",
    ),
    Entry(
        id="mamba",
        leaf="lightweight/linear_attention",
        title="A state-space model instead of attention (Mamba, 2023)",
        provider="transformers",
        target="transformers.MambaForCausalLM",
        stage="design",
        application="text",
        snippet="""
            from transformers import MambaConfig, MambaForCausalLM

            config = MambaConfig(vocab_size=100, hidden_size=32, state_size=4, num_hidden_layers=2, use_mambapy=False)
            logits = MambaForCausalLM(config).eval()(torch.randint(3, 100, (2, 16))).logits
        """,
        check="logits.shape == (2, 16, 100)",
        examples=("state-spaces/mamba-130m-hf",),
    ),
    Entry(
        id="longformer",
        leaf="lightweight/sparse_attention",
        title="A sliding window and global tokens (Longformer, 2020)",
        provider="transformers",
        target="transformers.LongformerForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import LongformerConfig, LongformerForSequenceClassification

            sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            config = LongformerConfig(vocab_size=100, attention_window=8, max_position_embeddings=66, **sizes)
            logits = LongformerForSequenceClassification(config).eval()(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 2)",
        examples=("allenai/longformer-base-4096",),
    ),
    Entry(
        id="routing_transformer",
        leaf="lightweight/sparse_attention",
        title="Attention within learned clusters (Routing Transformer, 2020)",
        provider="hf_ext",
        target="routing_transformer",
        stage="design",
        application="text",
        snippet="""
            from hf_ext.models.routing_transformer import RoutingTransformerConfig, RoutingTransformerForCausalLM

            sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_local_heads=2, num_routing_heads=2)
            config = RoutingTransformerConfig(**sizes, num_clusters=4, cluster_window=8, block_size=8, first_routing_layer=1)
            logits = RoutingTransformerForCausalLM(config).eval()(torch.randint(3, 100, (2, 32))).logits
        """,
        check="logits.shape == (2, 32, 100)",
    ),
    Entry(
        id="albert",
        leaf="lightweight/weight_sharing",
        title="One layer's weights for all layers (ALBERT, 2020)",
        provider="transformers",
        target="transformers.AlbertForSequenceClassification",
        stage="design",
        application="text",
        snippet="""
            from transformers import AlbertConfig, AlbertForSequenceClassification

            sizes = dict(vocab_size=100, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64)
            counts = [
                sum(p.numel() for p in AlbertForSequenceClassification(AlbertConfig(num_hidden_layers=n, **sizes)).parameters())
                for n in (2, 12)
            ]
        """,
        check="counts[0] == counts[1]",
        examples=("albert/albert-base-v2",),
    ),
    Entry(
        id="early_exit_drafts",
        leaf="lightweight/early_exit",
        title="Draft tokens from an early layer, checked by the whole model (LayerSkip, 2024)",
        provider="transformers",
        target="transformers.GenerationConfig.assistant_early_exit",
        stage="inference",
        application="text",
        model="llama",
        snippet="""
            prompt = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones(1, 16, dtype=torch.long)}
            early = model.generate(**prompt, max_new_tokens=8, do_sample=False, assistant_early_exit=2)
            plain = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        """,
        check="torch.equal(early, plain)",
    ),
    Entry(
        id="dynn",
        leaf="lightweight/early_exit",
        title="Classifiers that answer early when they are sure (DeeBERT 2020, SDN 2019)",
        provider="hf_ext",
        target="dynn",
        stage="training",
        snippet="""
            from hf_ext.models.dynn import MultiExitConfig, MultiExitForImageClassification

            sizes = dict(image_size=16, hidden_sizes=[8, 16], depths=[2, 2], stem_size=8, exits=[0, 1, 1, 0], num_labels=4)
            model = MultiExitForImageClassification(MultiExitConfig(**sizes)).eval()
            early = model(torch.rand(2, 3, 16, 16), exit_mode="dynamic", threshold=0.0)    # every answer is sure enough
        """,
        check="early.logits.shape == (2, 4)",
    ),
    Entry(
        id="dit_router",
        leaf="lightweight/dynamic_token_routing",
        title="A path through the blocks for each token (dynamic token routing, 2024)",
        provider="hf_ext",
        target="dit_router",
        stage="design",
        application="vision",
        snippet="""
            from hf_ext.models.dit_router import DynamicTokenRoutingConfig, DynamicTokenRoutingBackbone

            sizes = dict(hidden_sizes=[8, 12, 16, 24], num_attention_heads=[1, 2, 2, 3], depths=[1, 1, 2, 1], mlp_ratios=[2, 2, 2, 2])
            config = DynamicTokenRoutingConfig(**sizes, out_features=["stage1", "stage4"])
            maps = DynamicTokenRoutingBackbone(config).eval()(torch.rand(2, 3, 64, 64)).feature_maps
        """,
        check="[m.shape[-1] for m in maps] == [16, 2]",
    ),
    # -- hardware -----------------------------------------------------------------------------------------------------
    Entry(
        id="sdpa",
        leaf="hardware/fused_attention",
        title="Attention in one kernel (FlashAttention, 2022)",
        provider="torch",
        target="torch.nn.functional.scaled_dot_product_attention",
        stage="inference",
        model="llama",
        snippet="""
            from copy import deepcopy

            changed = deepcopy(model)
            changed.set_attn_implementation("sdpa")    # the default; "flash_attention_2" and "flex_attention" on a GPU
            model.set_attn_implementation("eager")
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="pre_rmsnorm",
        leaf="hardware/fused_norm_mlp",
        title="LayerNorm turned into the cheaper RMSNorm, exactly (Pre-RMSNorm, 2023)",
        provider="hf_ext",
        target="pre_rmsnorm",
        model="vit",
        snippet="""
            from hf_ext.surgery import compress

            changed = compress(model, ["pre_rmsnorm"])
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-4)",
    ),
    Entry(
        id="fused_rmsnorm",
        leaf="hardware/fused_norm_mlp",
        title="torch's RMSNorm, one kernel, in place of several operations",
        provider="torch",
        target="torch.nn.RMSNorm",
        model="llama",
        snippet="""
            from copy import deepcopy

            changed = deepcopy(model)
            for name, module in list(changed.named_modules()):
                if type(module).__name__ == "LlamaRMSNorm":
                    norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                    norm.weight = module.weight
                    changed.set_submodule(name, norm)
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="padding_free",
        leaf="hardware/variable_length",
        title="Encoders that compute nothing for padding (ByteTransformer, 2023)",
        provider="hf_ext",
        target="bytetransformer",
        stage="inference",
        application="text",
        model="bert",
        snippet="""
            from copy import deepcopy
            from hf_ext.surgery.bytetransformer import enable_padding_free

            inputs["attention_mask"][1, 4:] = 0
            changed = enable_padding_free(deepcopy(model))
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="flattened_batches",
        leaf="hardware/variable_length",
        title="Sequences of a batch one after the other instead of padded",
        provider="transformers",
        target="transformers.DataCollatorWithFlattening",
        stage="training",
        application="text",
        model="llama",
        snippet="""
            from transformers import DataCollatorWithFlattening

            batch = DataCollatorWithFlattening()([{"input_ids": [3, 4, 5]}, {"input_ids": [6, 7]}])
            ids = torch.as_tensor(batch["input_ids"])
        """,
        check="ids.shape == (1, 5) and torch.as_tensor(batch['position_ids']).flatten().tolist() == [0, 1, 2, 0, 1]",
    ),
    Entry(
        id="torch_export",
        leaf="hardware/compile_graph",
        title="The whole graph, ahead of time (torch.export; TVM and TensorRT start here)",
        provider="torch",
        target="torch.export.export",
        stage="inference",
        model="vit",
        snippet="""
            program = torch.export.export(model, (), inputs)
            logits = program.module()(**inputs).logits
        """,
        check="torch.allclose(logits, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="torch_compile",
        leaf="hardware/compile_graph",
        title="Fused kernels, generated at the first call (torch.compile)",
        provider="torch",
        target="torch.compile",
        stage="inference",
        quick=False,
        model="vit",
        snippet="""
            changed = torch.compile(model)
        """,
        check="torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-4)",
    ),
    Entry(
        id="onnx_runtime",
        leaf="hardware/cpu_runtime",
        title="Another runtime: ONNX Runtime (OpenVINO and ExecuTorch go the same way)",
        provider="onnxruntime",
        target="transformers.exporters.OnnxExporter",
        stage="inference",
        needs=("onnx", "onnxruntime", "onnxscript"),
        quick=False,
        model="vit",
        snippet="""
            from transformers.exporters import OnnxConfig, OnnxExporter

            exported = OnnxExporter().export(model, inputs, OnnxConfig())
            logits = exported(**inputs).logits
        """,
        check="torch.allclose(logits, model(**inputs).logits, atol=1e-4)",
    ),
    Entry(
        id="cpu_threads",
        leaf="hardware/cpu_runtime",
        title="As many threads as the work can use",
        provider="torch",
        target="torch.set_num_threads",
        stage="inference",
        hardware="cpu",
        model="vit",
        snippet="""
            from hf_ext.techniques.measure import latency

            before = latency(model, inputs)
            torch.set_num_threads(1)
            seconds = latency(model, inputs)
        """,
        check="seconds > 0 and torch.get_num_threads() == 1",
    ),
    Entry(
        id="sparse_rows",
        leaf="hardware/sparse_kernels",
        title="A pruned layer as compressed sparse rows; pays from about 95% zeros on",
        provider="torch",
        target="torch.Tensor.to_sparse_csr",
        stage="inference",
        model="linear",
        snippet="""
            from hf_ext.layers.compression import magnitude_mask

            weight = model.weight.detach() * magnitude_mask(model.weight.detach(), 0.95)
            product = (weight.to_sparse_csr() @ inputs.T).T + model.bias
        """,
        check="torch.allclose(product, torch.nn.functional.linear(inputs, weight, model.bias), atol=1e-5)",
    ),
    Entry(
        id="sparse_tensor_cores",
        leaf="hardware/sparse_kernels",
        title="2:4 weights on a GPU's sparse tensor cores",
        provider="torch",
        target="torch.sparse.to_sparse_semi_structured",
        stage="inference",
        hardware="gpu",
        snippet="""
            from hf_ext.layers.compression import mask_2_4

            linear = torch.nn.Linear(256, 256).half().cuda()
            pruned = (linear.weight * mask_2_4(linear.weight)).detach()
            inputs = torch.randn(128, 256, dtype=torch.half, device="cuda")
            expected = torch.nn.functional.linear(inputs, pruned, linear.bias)
            linear.weight = torch.nn.Parameter(torch.sparse.to_sparse_semi_structured(pruned))
        """,
        check="torch.allclose(linear(inputs), expected, atol=1e-2)",
    ),
    Entry(
        id="disk_offload",
        leaf="hardware/memory_offload",
        title="Weights that wait on the disk or in host memory for their layer's turn (DeepSpeed-Inference, FlexGen)",
        provider="accelerate",
        target="accelerate.disk_offload",
        stage="inference",
        model="llama",
        snippet="""
            from accelerate import disk_offload
            from copy import deepcopy

            offloaded = disk_offload(deepcopy(model), "offloaded", execution_device="cpu")
        """,
        check="next(offloaded.parameters()).is_meta and torch.equal(offloaded(**inputs).logits, model(**inputs).logits)",
    ),
    Entry(
        id="static_cache",
        leaf="hardware/kv_cache_management",
        title="A cache of fixed size, so that graphs can be compiled and memory planned",
        provider="transformers",
        target="transformers.StaticCache",
        stage="inference",
        application="text",
        model="llama",
        snippet="""
            from transformers import StaticCache

            cache = StaticCache(config=config, max_cache_len=32)
            static = model(**inputs, past_key_values=cache, use_cache=True).logits
        """,
        check="torch.allclose(static, model(**inputs).logits, atol=1e-5)",
    ),
    Entry(
        id="prompt_lookup",
        leaf="hardware/speculative_decoding",
        title="Drafts copied from the prompt, checked in one pass (prompt lookup, 2023)",
        provider="transformers",
        target="transformers.GenerationConfig.prompt_lookup_num_tokens",
        stage="inference",
        application="text",
        model="llama",
        snippet="""
            prompt = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones(1, 16, dtype=torch.long)}
            fast = model.generate(**prompt, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
            plain = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        """,
        check="torch.equal(fast, plain)",
    ),
    Entry(
        id="assisted_generation",
        leaf="hardware/speculative_decoding",
        title="Drafts of a small model, checked in one pass (speculative decoding, 2023)",
        provider="transformers",
        target="transformers.GenerationMixin.generate",
        stage="inference",
        application="text",
        model="llama",
        snippet="""
            draft = LlamaForCausalLM(LlamaConfig.from_dict(config.to_dict() | {"num_hidden_layers": 1})).eval()
            prompt = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones(1, 16, dtype=torch.long)}
            fast = model.generate(**prompt, max_new_tokens=8, do_sample=False, assistant_model=draft)
            plain = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        """,
        check="torch.equal(fast, plain)",
    ),
    Entry(
        id="browser_export",
        leaf="hardware/browser",
        title="ONNX with WebGPU's fused operations, for onnxruntime-web",
        provider="onnxruntime",
        target="transformers.exporters.OnnxConfig",
        stage="inference",
        needs=("onnx", "onnxruntime", "onnxscript"),
        quick=False,
        model="vit",
        snippet="""
            from transformers.exporters import OnnxConfig, OnnxExporter

            OnnxExporter().export(model, inputs, OnnxConfig(ort_fusions="webgpu")).save_pretrained("web")
            files = __import__("os").listdir("web")
        """,
        check="any(file.endswith('.onnx') for file in files)",
    ),
    Entry(
        id="nn_jit_web",
        leaf="hardware/browser",
        title="Kernels tuned in the browser that runs them (nn-JIT.web, 2023)",
        provider="hf_ext",
        target="nn_jit_web",
        stage="inference",
    ),
    Entry(
        id="roofline",
        leaf="hardware/accelerator_simulation",
        title="What bounds each operation of a model on a device that is not there: its arithmetic or its memory",
        provider="hf_ext",
        target="hf_ext.techniques.complexity.roofline",
        stage="design",
        model="bert",
        snippet="""
            from hf_ext.techniques.complexity import Device, roofline

            estimate = roofline(model, inputs, Device("an accelerator", flops=100e12, bytes_per_second=1e12))
            slowest = max(estimate, key=lambda operation: operation.seconds)
        """,
        check="slowest.seconds > 0 and sum(operation.flops for operation in estimate) > 0",
    ),
)
