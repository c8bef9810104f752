"""FuseGPT on every family: fusing starts as plain removal, fitting brings the group back, folding gives a plain, equal model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    DeiTForImageClassification,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinModel,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ext.reproductions.training import TensorDataset
from hf_ext.surgery import SPT, FuseGPT, LlmDrop, PreRMSNorm, RepBN, apply
from hf_ext.surgery import compress as compress_by_names
from hf_ext.surgery.families import layers_of
from hf_ext.surgery.fusegpt import (
    LOSSES,
    FuseLinear,
    compress,
    fit,
    fold,
    fusion_group,
    linears_of,
    present,
    similarity_without,
)
from hf_ext.training.fusegpt import fusion_optimizer
from tests.surgery.test_llm_drop import SIZES

LAYERS = 6
WIDTHS = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = WIDTHS | {"image_size": 16, "patch_size": 4}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
}
ENCODERS = {
    "bert": (BertForSequenceClassification, WIDTHS | TEXT),
    "roberta": (RobertaForSequenceClassification, WIDTHS | TEXT),
    "vit": (ViTForImageClassification, IMAGE),
    "deit": (DeiTForImageClassification, IMAGE),
}
DECODERS = {name: SIZES[name] for name in ("llama", "mistral", "qwen2", "gemma2", "gpt2")} | {"opt": OPT | TEXT}
IDS = torch.randint(3, 64, (4, 9), generator=torch.Generator().manual_seed(0))
TEXTS = [{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS.flip(0), "attention_mask": torch.ones_like(IDS)}]
QUICK = {"blocks": 2, "group_size": 4, "epochs": 2, "lora_rank": 4, "weight_lora_rank": 4}
families = pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
decoders = pytest.mark.parametrize("family", DECODERS)


@pytest.fixture(autouse=True)
def no_progress_bars():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def dense(family="llama"):
    torch.manual_seed(0)
    if family in ENCODERS:
        model_class, fields = ENCODERS[family]
        return model_class(CONFIG_MAPPING[family](**fields, num_labels=3)).eval()
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**DECODERS[family])).eval()


def batches(family="llama"):
    return [{"pixel_values": torch.randn(4, 3, 16, 16)}] if family in ("vit", "deit") else TEXTS


@torch.no_grad()
def logits(model, family="llama"):
    inputs = {"pixel_values": torch.ones(2, 3, 16, 16)} if family in ("vit", "deit") else {"input_ids": IDS}
    return model(**inputs).logits


def recipe(layers=(2, 3), **fields):
    return FuseGPT(list(layers), **{"group_size": 4, "lora_rank": 4, "weight_lora_rank": 4} | fields)


def moved(model):
    """With every parameter off its initial value: coefficients of zero hide mistakes"""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data = parameter + 0.02 * torch.randn_like(parameter)
    return model


def by_hand(family, gone):
    """The dense model with layers that give what they get"""
    model = dense(family)
    for index in gone:
        layers_of(model)[index].forward = lambda hidden_states, *args, **kwargs: hidden_states
    return model


@families
def test_right_after_fusing_the_model_is_the_one_without_the_blocks(family):
    fused = apply(dense(family), recipe())
    torch.testing.assert_close(logits(fused, family), logits(by_hand(family, (2, 3)), family), atol=1e-6, rtol=1e-5)


@families
def test_fused_weights_restore_through_the_auto_class(family, tmp_path):
    model = moved(apply(dense(family), recipe()))
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded, family), logits(model, family))


@families
def test_folding_gives_a_plain_model_with_fewer_layers_that_computes_the_same(family, tmp_path):
    model = moved(apply(dense(family), recipe()))
    plain = fold(model)
    assert type(plain) is type(dense(family)) and plain.config.num_hidden_layers == LAYERS - 2
    torch.testing.assert_close(logits(plain, family), logits(model, family), atol=1e-5, rtol=1e-4)
    plain.save_pretrained(tmp_path)
    loaded, info = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded, family), logits(plain, family))


@families
def test_compress_leaves_the_given_model_as_it_was(family):
    model = dense(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller = compress(model, batches(family), **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert smaller.num_parameters() < model.num_parameters() and not hasattr(smaller.config, "surgery")


@decoders
def test_generating_with_the_cache_equals_without_before_and_after_folding(family):
    model = moved(apply(dense(family), recipe((0, 3))))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(IDS, use_cache=False, **options)
    assert torch.equal(model.generate(IDS, use_cache=True, **options), expected)
    assert torch.equal(fold(model).generate(IDS, use_cache=True, **options), expected)


@pytest.mark.parametrize("mode", ["lora", "matrix", "vector"])
def test_effective_weight_is_the_sum_of_its_parts(mode):
    linear = FuseLinear(nn.Linear(6, 5), rank=3)
    added = [torch.randn(5, 6), torch.randn(5, 6)]
    for weight in added:
        linear.add(weight, torch.ones(5), mode, rank=2)
    moved(linear)
    coefficients = [part.coef if part.coef_right is None else part.coef @ part.coef_right for part in linear.fused]
    expected = linear.weight + linear.low_rank_B @ linear.low_rank_A + sum(c * a for c, a in zip(coefficients, added))
    x = torch.randn(2, 6)
    torch.testing.assert_close(linear(x), x @ expected.T + linear.bias + linear.coef_bias)
    torch.testing.assert_close(linear.fold()(x), linear(x))


def test_bias_that_was_fused_before_stays_when_another_follows():
    linear = FuseLinear(nn.Linear(3, 2), rank=1)
    linear.add(torch.randn(2, 3), torch.ones(2), "vector", 1)
    linear.coef_bias.data.fill_(0.5)
    before = linear(torch.zeros(1, 3))
    linear.add(torch.randn(2, 3), torch.randn(2), "vector", 1)
    torch.testing.assert_close(linear(torch.zeros(1, 3)), before)


def test_fused_block_that_goes_itself_gives_its_merged_weights():
    model = moved(apply(dense(), recipe((2,), group_size=6)))
    merged = linears_of(layers_of(model)[3])["mlp.up_proj"].merged_weight()
    twice = apply(model, recipe((3,), group_size=6))
    torch.testing.assert_close(linears_of(layers_of(twice)[1])["mlp.up_proj"].fused[1].weight, merged)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["lora", "matrix", "vector"])
def test_fitting_brings_the_model_closer_to_the_whole_one(loss, mode):
    model = dense()
    fitted = fit(model, TEXTS, **QUICK | {"blocks": 1, "epochs": 20, "coef_mode": mode, "loss": loss, "coef_lr": 1e-2})
    gone = fitted.config.surgery[0]["layers"]
    distance = [(logits(m) - logits(model)).norm() for m in (fitted, apply(model, recipe(gone)))]
    assert distance[0] < 0.9 * distance[1]


def test_only_coefficients_low_rank_updates_norms_and_biases_are_fitted():
    model = dense("gpt2")
    fitted = fit(model, TEXTS, **QUICK)
    names = {
        name.rpartition(".")[2]
        for name, p in fitted.named_parameters()
        if id(p) not in {id(q) for q in model.parameters()}
    }
    layers = layers_of(fitted)
    kept = [
        module.weight
        for i in present(layers)
        for module in linears_of(layers[i]).values()
        if isinstance(module, FuseLinear)
    ]
    assert names == {
        "coef",
        "coef_right",
        "coef_bias",
        "low_rank_A",
        "low_rank_B",
        "weight",
        "bias",
    }  # weight: of norms, and transposed
    originals = [module.weight.T for layer in layers_of(model) for module in linears_of(layer).values()]
    assert all(any(weight.shape == o.shape and torch.equal(weight, o) for o in originals) for weight in kept)


def test_gradient_checkpointing_fits_to_the_same_weights():
    torch.manual_seed(2)
    plain = fit(dense(), TEXTS, **QUICK)
    torch.manual_seed(2)
    checkpointed = fit(dense(), TEXTS, gradient_checkpointing=True, **QUICK)
    torch.testing.assert_close(logits(checkpointed), logits(plain), atol=1e-6, rtol=1e-5)


def test_padding_counts_neither_in_influence_nor_in_fitting():
    padded = torch.cat([IDS, torch.zeros(4, 3, dtype=torch.long)], 1)
    mask = (torch.arange(12) < 9).long().expand(4, -1)
    with_padding = [{"input_ids": padded, "attention_mask": mask}]
    plain = [{"input_ids": IDS}]
    torch.testing.assert_close(similarity_without(dense(), with_padding), similarity_without(dense(), plain))
    results = []
    for calibration in (with_padding, plain):
        torch.manual_seed(3)
        results.append(logits(fit(dense(), calibration, **QUICK)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def last_state(model):
    found = []
    layers_of(model)[-1].register_forward_hook(lambda layer, args, output: found.append(output))
    model(IDS)
    return found[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_influence_equals_running_the_stack_without_each_block(family):
    similarity, whole = similarity_without(dense(family), TEXTS[:1]), last_state(dense(family))
    for index in range(LAYERS):
        expected = torch.cosine_similarity(whole, last_state(by_hand(family, (index,))), dim=-1).mean()
        torch.testing.assert_close(similarity[index], expected, atol=1e-6, rtol=1e-5)


def test_fit_goes_on_from_what_it_saved(tmp_path):
    options = QUICK | {"save_to": tmp_path / "state"}
    first = fit(dense(), TEXTS, **options | {"blocks": 1})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "state")
    assert torch.equal(logits(loaded), logits(first))
    second = fit(loaded, TEXTS, **options)
    assert len(present(layers_of(second))) == LAYERS - 2
    assert (
        len(second.config.surgery) == 1 and second.config.surgery[0]["layers"][:1] == first.config.surgery[0]["layers"]
    )


def test_order_of_influence_can_be_measured_once():
    similarity = similarity_without(dense(), TEXTS)
    once = fit(dense(), TEXTS, iterative=False, **QUICK)
    assert once.config.surgery[0]["layers"] == similarity.argsort(descending=True)[:2].tolist()


def test_prune_rate_is_rounded_up():
    smaller = compress(dense(), TEXTS, **QUICK | {"blocks": None, "prune_rate": 0.2, "epochs": 1})
    assert smaller.config.num_hidden_layers == LAYERS - 2


def test_layer_types_go_with_their_layers():
    model = apply(dense("qwen2"), recipe((1, 4)))
    types = model.config.layer_types
    assert fold(model).config.layer_types == [types[i] for i in (0, 2, 3, 5)]


def test_light_fine_tuning_through_trainer_moves_what_the_method_trains(tmp_path):
    model = fit(dense(), TEXTS, **QUICK)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = fusion_optimizer(model, coef_lr=1e-2, base_lr=1e-2)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    Trainer(
        model, arguments, train_dataset=TensorDataset(input_ids=IDS, labels=IDS), optimizers=(optimizer, None)
    ).train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all(any(part in name for part in ("coef", "low_rank", "norm")) for name in changed)
    model.eval()
    torch.testing.assert_close(logits(fold(model)), logits(model), atol=1e-5, rtol=1e-4)


def test_lora_with_default_targets_8_bit_and_generate_work_on_the_result(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    compress(dense(), TEXTS, **QUICK).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.generate(input_ids=IDS, max_new_tokens=3).shape == (4, 12)


def test_lora_with_default_targets_merges_before_folding():
    from peft import LoraConfig, get_peft_model

    model = moved(apply(dense(), recipe()))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    expected = logits(adapted)
    torch.testing.assert_close(logits(fold(adapted.merge_and_unload())), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
@pytest.mark.parametrize("first", [True, False])
def test_dropping_branches_composes_in_any_order_and_is_renumbered(family, first, tmp_path):
    drop = LlmDrop(attention=[1, 2, 4], mlp=[5])
    model = moved(apply(dense(family), *((drop, recipe()) if first else (recipe(), drop))))
    smaller = fold(model)
    assert smaller.config.surgery == [LlmDrop(attention=[1, 2], mlp=[3]).to_dict()]  # 4 and 5 are 2 and 3 now
    torch.testing.assert_close(logits(smaller, family), logits(model, family), atol=1e-5, rtol=1e-4)
    for changed in (model, smaller):
        changed.save_pretrained(tmp_path)
        assert torch.equal(logits(type(changed).from_pretrained(tmp_path), family), logits(changed, family))


def test_blocks_that_another_recipe_dropped_whole_are_folded_away():
    model = moved(apply(dense(), LlmDrop([4], [4]), recipe((2,))))
    smaller = fold(model)
    assert smaller.config.model_type == "llama" and smaller.config.num_hidden_layers == LAYERS - 2
    torch.testing.assert_close(logits(smaller), logits(model), atol=1e-5, rtol=1e-4)


def test_other_norms_compose():
    model = apply(dense(), RepBN(), recipe())
    torch.testing.assert_close(logits(fold(model)), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "vit"])
@pytest.mark.parametrize("variant", ["rms", "crms"])
def test_other_normalization_composes_on_either_side_of_the_whole_method(family, variant, tmp_path):
    norms = PreRMSNorm(norm_variant=variant)
    before = fold(fit(apply(dense(family), norms), batches(family), **QUICK))
    after = apply(compress(dense(family), batches(family), **QUICK), norms)
    for model in (before, after):
        assert model.config.num_hidden_layers == LAYERS - 2 and model.config.surgery[0]["name"] == "pre_rmsnorm"
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(type(model).from_pretrained(tmp_path), family), logits(model, family))


@pytest.mark.parametrize("variant", ["rms", "crms"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "vit"])
def test_the_first_layer_may_go_after_norms_were_changed(family, variant, tmp_path):
    model = apply(dense(family), PreRMSNorm(norm_variant=variant), recipe((0, 1)))
    smaller = fold(model)
    torch.testing.assert_close(logits(smaller, family), logits(by_hand(family, (0, 1)), family), atol=1e-5, rtol=1e-4)
    smaller.save_pretrained(tmp_path)
    assert torch.equal(logits(type(smaller).from_pretrained(tmp_path), family), logits(smaller, family))


def test_compress_takes_recipes_by_name():
    smaller = compress_by_names(
        dense(), ["fusegpt:blocks=2,group_size=4,epochs=1", "llm_drop:attention=1"], calibration=TEXTS
    )
    assert smaller.config.num_hidden_layers == LAYERS - 2 and len(smaller.config.surgery) == 1


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    layers=st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS - 1, unique=True),
    group_size=st.integers(2, 9),
    mode=st.sampled_from(["lora", "matrix", "vector"]),
    family=st.sampled_from(["llama", "gpt2", "bert"]),
)
def test_any_choice_of_layers_folds_to_what_it_computed(layers, group_size, mode, family):
    model = moved(apply(dense(family), recipe(layers, group_size=group_size, coef_mode=mode)))
    torch.testing.assert_close(logits(fold(model), family), logits(model, family), atol=1e-5, rtol=1e-4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 12), st.data())
def test_groups_hold_the_fused_block_and_a_neighbour(num_layers, group_size, data):
    index = data.draw(st.integers(0, num_layers - 1))
    group = fusion_group(index, num_layers, group_size)
    assert 0 <= group.first <= index <= group.last < num_layers
    assert 2 <= group.last - group.first + 1 <= group_size


def swin():
    return SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
    )


def adapted():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(dense(), LoraConfig(task_type="CAUSAL_LM")).base_model.model


def gpt2_scaled():
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["gpt2"](**DECODERS["gpt2"], scale_attn_by_inverse_layer_idx=True)
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: FuseGPT([-1]), "layer indices from 0"),
        (lambda: FuseGPT([1, 1]), "twice"),
        (lambda: FuseGPT([1], group_size=1), "group_size=1 must be a whole number of at least 2"),
        (lambda: FuseGPT([1], coef_mode="tensor"), "lora, matrix, vector"),
        (lambda: FuseGPT([1], lora_rank=0), "lora_rank=0"),
        (lambda: apply(dense(), recipe((6,))), r"names layer 6, but SurgicalLlamaForCausalLM has \[0, 1, 2, 3, 4, 5\]"),
        (lambda: apply(apply(dense(), recipe((2,))), recipe((2,))), "names layer 2"),
        (lambda: apply(dense(), recipe(range(6))), "last one"),
        (lambda: apply(swin(), recipe()), "differ in width"),
        (lambda: apply(gpt2_scaled(), recipe()), "scale_attn_by_inverse_layer_idx"),
        (lambda: apply(dense("qwen2"), recipe((0, 1, 2))), "every attention of type 'full_attention'"),
        (lambda: apply(adapted(), recipe()), "carries adapters: .* before blocks are fused"),
        (lambda: fit(adapted(), TEXTS), "carries adapters"),
        (lambda: fold(dense()), "nothing to fold"),
        (lambda: compress(dense(), None), "at least one batch"),
        (lambda: compress(dense(), [IDS]), "dict of forward arguments"),
        (lambda: compress(dense(), [{"words": IDS}]), "takes none of"),
        (lambda: compress(dense(), [{"input_ids": IDS[:1]}]), "batches of two or more"),
        (lambda: compress(dense(), [{"input_ids": IDS, "attention_mask": IDS * 0}]), "no token"),
        (lambda: compress(dense(), TEXTS, blocks=6), "a whole number from 1 to 5"),
        (lambda: compress(dense(), TEXTS, prune_rate=1.0), "between 0 and 1"),
        (lambda: compress(dense(), TEXTS, loss="cosine"), "kl_batch, kl_width, mse"),
        (lambda: compress(dense(), TEXTS, epochs=0), "at least 1"),
        (lambda: compress_by_names(dense(), ["fusegpt:layers=2"], TEXTS), "does not take these options"),
        (lambda: fusion_optimizer(dense()), "no fused blocks"),
    ],
)
def test_bad_requests_say_what_is_allowed(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()


def test_layers_of_other_widths_are_refused():
    model = dense()
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 40, bias=False)
    with pytest.raises(ValueError, match="before layers are made narrower"):
        apply(model, recipe((2,)))


def test_recipes_that_read_weights_wait_until_the_model_is_folded():
    model = apply(dense("gpt2"), recipe())
    for other in (SPT(), PreRMSNorm()):
        with pytest.raises(ValueError, match="fold` the model first"):
            apply(model, other)
        apply(fold(model), other)
