"""OPTIN: scores are those of masking one unit at a time, what is pruned is gone, and the budget holds."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForSequenceClassification,
    AutoModelForUniversalSegmentation,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DeiTConfig,
    DynamicCache,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Mask2FormerConfig,
    OPTConfig,
    ResNetConfig,
    RobertaConfig,
    SegformerConfig,
    StaticCache,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
)

from hf_ext.convert import convert_checkpoint
from hf_ext.layers.narrowing import Constant
from hf_ext.surgery import SPT, LlmDrop, Optin, apply
from hf_ext.surgery.families import family_of, layers_of
from hf_ext.surgery.optin import compress, indices, ranges, rank, search
from hf_ext.surgery.trajectory import Scores, Scoring, _Probe, log_probabilities, logit_loss, manifold_loss
from hf_ext.surgery.units import prunable, units

TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 12}
STAGES = {
    "image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 1.5,
}  # fmt: skip
SWIN = {**STAGES, "out_features": ["stage1", "stage2"]}
CONFIGS = {
    "bert": (AutoModelForSequenceClassification, BertConfig(**WIDTHS, **TEXT, num_labels=3)),
    "roberta": (AutoModelForSequenceClassification, RobertaConfig(**WIDTHS, **TEXT, num_labels=3)),
    "gpt2": (AutoModelForCausalLM, GPT2Config(n_embd=16, n_layer=3, n_head=4, n_inner=12, n_positions=32, **TEXT)),
    "opt": (AutoModelForCausalLM, OPTConfig(**WIDTHS, **TEXT, ffn_dim=12, word_embed_proj_dim=16, max_position_embeddings=32)),
    "llama": (AutoModelForCausalLM, LlamaConfig(**WIDTHS, **TEXT, num_key_value_heads=2)),
    "gemma2": (AutoModelForCausalLM, Gemma2Config(**WIDTHS, **TEXT, num_key_value_heads=2, head_dim=8, sliding_window=4)),
    "vit": (AutoModelForImageClassification, ViTConfig(**WIDTHS, image_size=16, patch_size=4, num_labels=3)),
    "deit": (AutoModelForImageClassification, DeiTConfig(
            **WIDTHS, image_size=16, patch_size=4, num_labels=3, architectures=["DeiTForImageClassification"]
        )),
    "swin": (AutoModelForImageClassification, SwinConfig(**STAGES, num_labels=3)),
    "segformer": (
        AutoModelForSemanticSegmentation,
        SegformerConfig(
            num_encoder_blocks=2, depths=[2, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
            num_attention_heads=[2, 4], mlp_ratios=[2, 1], decoder_hidden_size=8, num_labels=3,
        ),
    ),
    "upernet": (
        AutoModelForSemanticSegmentation,
        UperNetConfig(
            backbone_config=SwinConfig(**SWIN), hidden_size=8, pool_scales=[1], use_auxiliary_head=False, num_labels=3
        ),
    ),
    "mask2former": (
        AutoModelForUniversalSegmentation,
        Mask2FormerConfig(
            backbone_config=SwinConfig(**STAGES | {"depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 4]},
                                       out_features=["stage1", "stage2", "stage3", "stage4"]),
            feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=8, encoder_layers=1, num_attention_heads=2,
            dim_feedforward=8, decoder_layers=2, num_queries=5, num_labels=3,
        ),
    ),
}  # fmt: skip
families = pytest.mark.parametrize("family", CONFIGS)
decoders = pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma2"])


def dense(family="bert"):
    torch.manual_seed(0)
    auto_class, config = CONFIGS[family]
    model = auto_class.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs(family="bert", batch=2):
    generator = torch.Generator().manual_seed(1)
    _, config = CONFIGS[family]
    if hasattr(config, "vocab_size"):
        ids = torch.randint(3, 64, (batch, 7), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = 16 if family in ("vit", "deit") else 32
    return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}


def everything_but(model, kind, number, unit):
    """The recipe that prunes one unit of one layer"""
    family, layers = prunable(model)
    branch = family.attention if kind == "heads" else family.mlp
    kept = [[i for i in range(units(layer, branch)) if (row, i) != (number, unit)] for row, layer in enumerate(layers)]
    return Optin(**{kind: kept})


def odd_plan(model):
    """Another number of units in each layer; one attention and one MLP are emptied"""
    family, layers = prunable(model)
    heads, neurons = ([units(layer, branch) for layer in layers] for branch in (family.attention, family.mlp))
    last = len(layers) - 1
    return Optin(
        heads=["" if row == 1 else list(range(0, count, 2)) for row, count in enumerate(heads)],
        neurons=["" if row == last else [*range(row + 1), count - 1] for row, count in enumerate(neurons)],
    )


def predictions(model, batch):
    return log_probabilities(model(**batch))


def masked(model, recipe):
    """The dense model with what a recipe prunes set to zero"""
    model = copy.deepcopy(model)
    parts, layers = prunable(model)
    for row, layer in enumerate(layers):
        for branch, entries in ((parts.attention, recipe.heads), (parts.mlp, recipe.neurons)):
            mask = torch.zeros(units(layer, branch))
            mask[indices(entries[row])] = 1
            layer.get_submodule(branch.output).register_forward_pre_hook(
                lambda m, args, mask=mask: ((args[0].unflatten(-1, (len(mask), -1)) * mask[:, None]).flatten(-2),)
            )
    return model


def check_equals_masked(family, recipe):
    model, batch = dense(family), inputs(family)
    pruned, expected = apply(model, recipe), masked(model, recipe)
    torch.testing.assert_close(predictions(pruned, batch), predictions(expected, batch), atol=1e-5, rtol=1e-4)


@families
@torch.no_grad()
def test_pruned_model_equals_the_dense_one_with_units_set_to_zero(family):
    check_equals_masked(family, odd_plan(dense(family)))


subsets = st.tuples(*[st.lists(st.integers(0, 1), max_size=2)] * 3), st.tuples(*[st.lists(st.integers(0, 11))] * 3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(family=st.sampled_from(["bert", "gpt2", "llama", "vit"]), heads=subsets[0], neurons=subsets[1])
@torch.no_grad()
def test_any_choice_of_units_can_be_kept(family, heads, neurons):
    check_equals_masked(family, Optin(list(heads), list(neurons)))


@families
def test_pruned_layers_are_smaller_and_hold_no_masks(family):
    model = dense(family)
    pruned = apply(model, odd_plan(model))
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    assert {name for name, _ in pruned.named_buffers()} <= {name for name, _ in model.named_buffers()}
    branch = family_of(pruned).mlp
    assert isinstance(layers_of(pruned)[-1].get_submodule(branch.output), Constant)


@families
@torch.no_grad()
def test_restores_through_from_pretrained(family, tmp_path):
    dense(family).save_pretrained(tmp_path / "dense")  # some families' files have other names for weights
    model = CONFIGS[family][0].from_pretrained(tmp_path / "dense").eval()
    pruned = apply(model, odd_plan(model))
    pruned.save_pretrained(tmp_path)
    loaded, info = CONFIGS[family][0].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(pruned)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(x, pruned.state_dict()[name]) for name, x in loaded.state_dict().items())
    torch.testing.assert_close(predictions(loaded.eval(), inputs(family)), predictions(pruned, inputs(family)))
    assert AutoConfig.from_pretrained(tmp_path).surgery == pruned.config.surgery


@families
@torch.no_grad()
def test_scores_are_those_of_one_pruned_unit_at_a_time(family):
    model, batch = dense(family), inputs(family)
    scoring = Scoring(head_decay=1, head_last_layer_decay=1, neuron_last_layer_decay=1, loss_type="KL")
    scores = rank(model, batch, scoring)
    whole = predictions(model, batch)
    for kind in ("heads", "neurons"):
        for number in (0, len(scores.heads) - 1):
            found = getattr(scores, kind)[number]
            for unit in (0, len(found) - 1):
                alone = apply(model, everything_but(model, kind, number, unit))
                expected = -logit_loss(whole, predictions(alone, batch)).item()
                assert found[unit].item() == pytest.approx(expected, rel=5e-3, abs=2e-5)


@families
@torch.no_grad()
def test_trajectory_is_compared_in_all_later_layers(family):
    model, batch = dense(family), inputs(family)
    scores = rank(model, batch, Scoring(loss_type="MMD", head_decay=1))
    parts, layers = prunable(model)
    whole = _Probe(model, parts, layers, batch, Scoring(loss_type="MMD")).features
    for kind in ("heads", "neurons"):
        alone = apply(model, everything_but(model, kind, 0, 1))
        features = _Probe(alone, parts, layers_of(alone), batch, Scoring(loss_type="MMD")).features
        if kind == "neurons" and not parts.post_norm and model.main_input_name != "pixel_values":
            features[0] = None
        expected = -sum(manifold_loss(a, b) for a, b in zip(whole[1:], features[1:])).item()
        assert getattr(scores, kind)[0][1].item() == pytest.approx(expected, rel=1e-2, abs=1e-5)


@torch.no_grad()
def test_leak_masks_the_last_head_of_every_layer_below():
    model, batch = dense(), inputs()
    scores = rank(model, batch, Scoring(loss_type="KL", head_decay=1, head_last_layer_decay=1, leak_head_mask=True))
    leaked = apply(model, Optin(heads=["0-2", "0-2", "1-3"]))
    expected = -logit_loss(predictions(model, batch), predictions(leaked, batch)).item()
    assert scores.heads[2][0].item() == pytest.approx(expected, rel=5e-3)


def test_scores_of_two_batches_are_those_of_both_together():
    model, batch = dense(), inputs(batch=4)
    scoring = Scoring(loss_type="KL")
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in (0, 2)]
    for together, apart in zip(rank(model, batch, scoring).heads, rank(model, parts, scoring).heads):
        torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-3)


def test_only_as_many_samples_as_asked_for_are_used():
    model = dense()
    first, second = inputs(), {name: x.flip(0) * 1 for name, x in inputs(batch=3).items()}
    one, both = rank(model, first), rank(model, [first, second], samples=2)
    assert torch.equal(one.neurons[0], both.neurons[0])


@torch.no_grad()
def test_ranking_leaves_the_model_as_it_was():
    model, batch = dense().train(), inputs()
    before = copy.deepcopy(model.state_dict())
    rank(model, batch)
    assert model.training and all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in layer.__dict__ for layer in layers_of(model))


def test_index_prior_favours_the_first_units():
    model, batch = dense(), inputs()
    plain, prior = (rank(model, batch, Scoring(neuron_index_prior=value)).neurons[0] for value in (1, 100))
    torch.testing.assert_close(prior / plain, torch.logspace(2, 0, len(plain), dtype=torch.float64))


def test_manifold_loss_is_the_same_over_rows_and_over_channels():
    torch.manual_seed(0)
    teacher = torch.randn(4, 30, 5, dtype=torch.float32)
    student = teacher + 0.01 * torch.randn(3, 4, 30, 5)
    a, b = (torch.nn.functional.normalize(x, dim=-1).double() for x in (teacher, student))
    a, b = a.flatten(0, 1), b.flatten(1, 2)
    expected = (a @ a.T - b @ b.mT).square().sum((-2, -1))
    torch.testing.assert_close(manifold_loss(teacher, student).double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(manifold_loss(teacher, student, "mean").double(), expected / 120**2, rtol=1e-4, atol=0)


def test_features_of_many_tokens_are_sampled():
    torch.manual_seed(0)
    teacher, student = torch.randn(10, 100, 4), torch.randn(10, 100, 4)
    assert 0 < manifold_loss(teacher, student) < 768**2 * 4


def uniform(heads, neurons, head_macs=8.0, neuron_macs=1.0):
    layers = len(heads)
    tensors = ([torch.tensor(row, dtype=torch.float64) for row in rows] for rows in (heads, neurons))
    return Scores(*tensors, [head_macs] * layers, [neuron_macs] * layers, [0.0] * layers)


def test_search_takes_the_best_mix_of_heads_and_neurons():
    scores = uniform([[-10, -1], [-1, -9]], [[-1.0] * 8, [-2.0] * 8])
    recipe = search(scores, 32 / 48)
    assert (recipe.heads, recipe.neurons) == (["0", "1"], ["0-7", "0-7"])


def test_whole_budget_keeps_everything():
    scores = uniform([[-3.0, -1.0]] * 3, [[-0.1] * 7] * 3, 0.3, 0.1)
    assert search(scores, 1.0).heads == ["0-1"] * 3 and search(scores, 1.0).neurons == ["0-6"] * 3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    heads=st.lists(st.lists(st.floats(0.01, 9), min_size=2, max_size=4), min_size=2, max_size=3),
    neurons=st.integers(2, 9),
    costs=st.lists(st.floats(0.5, 9), min_size=6, max_size=6),
    flops=st.floats(0.5, 1),
)
def test_search_keeps_to_the_budget_whatever_layers_cost(heads, neurons, costs, flops):
    layers = len(heads)
    scores = Scores(
        [-torch.tensor(row, dtype=torch.float64) for row in heads],
        [-torch.rand(neurons, dtype=torch.float64) for _ in heads],
        costs[:layers],
        [cost / 5 for cost in costs[-layers:]],
        [0.0] * layers,
    )
    try:
        recipe = search(scores, flops)
    except ValueError as error:
        assert "room for a single head" in str(error)
        return
    kept = [[len(indices(entry)) for entry in entries] for entries in (recipe.heads, recipe.neurons)]
    assert scores.macs_of(*kept) <= flops * scores.macs * (1 + 1e-6)


@families
def test_compress_keeps_to_the_share_of_operations(family):
    model, batch = dense(family), inputs(family)
    scores = rank(model, batch)
    pruned = compress(model, [batch], flops=0.7)
    recipe = Optin(**{k: v for k, v in pruned.config.surgery[0].items() if k != "name"})
    kept = [[len(indices(entry)) for entry in entries] for entries in (recipe.heads, recipe.neurons)]
    largest = max(*scores.head_macs, *scores.neuron_macs)
    assert 0.7 * scores.macs - 2 * largest <= scores.macs_of(*kept) <= 0.7 * scores.macs * (1 + 1e-6)


def test_operations_of_bert_are_the_paper_s():
    batch = inputs()
    n, d, e = 7, 16, 4
    scores = rank(dense(), batch, Scoring(loss_type="MMD"))
    assert scores.head_macs == pytest.approx([3 * n * d * e + 2 * n * n * e + n * e * d] * 3)
    assert scores.neuron_macs == [2 * n * d] * 3
    padded = batch | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
    assert rank(dense(), padded, Scoring(loss_type="MMD")).neuron_macs == [2 * 5.5 * d] * 3


def test_patch_embedding_counts_but_is_never_pruned():
    scores = rank(dense("vit"), inputs("vit"))
    assert scores.fixed_macs == 16 * 16 * 3 * 4 * 4


@decoders
def test_generating_with_the_cache_equals_without(family):
    model = dense(family)
    heads = [
        "",
        *["0-1" if family in ("llama", "gemma2") else "1-3"] * 2,
    ]  # the first layer counts positions in the cache
    pruned = apply(model, Optin(heads=heads, neurons=["0-3", "", "2,5"]))
    ids = inputs(family)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = pruned.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, pruned.generate(ids, use_cache=False, **options))
    static = StaticCache(pruned.config, max_cache_len=16)
    assert torch.equal(cached, pruned.generate(ids, past_key_values=static, **options))
    assert pruned.generate(ids, num_beams=2, max_new_tokens=3, pad_token_id=0).shape == (2, 10)


@torch.no_grad()
def test_cache_holds_the_kept_groups_alone():
    pruned = apply(dense("llama"), Optin(heads=["0", "0-1", ""]))
    cache = DynamicCache(config=pruned.config)
    pruned(inputs("llama")["input_ids"], past_key_values=cache)
    assert [layer.keys.shape[1] * layer.keys.shape[3] for layer in cache.layers] == [4, 8, 1]


def test_grouped_queries_leave_with_their_key_value_head():
    pruned = apply(dense("llama"), Optin(heads=["1", "0-1", "0"]))
    attention = layers_of(pruned)[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.o_proj.in_features) == (8, 4, 8)


def test_pruning_twice_equals_pruning_at_once():
    model = dense()
    twice = apply(apply(model, Optin(heads=["0-2", "1-3", "0,3"])), Optin(heads=["0,2", "0-2", "1"]))
    once = apply(model, Optin(heads=["0,2", "1-3", "3"]))
    assert torch.equal(predictions(twice, inputs()), predictions(once, inputs()))


def test_the_given_model_stays_as_it_was():
    model, batch = dense(), inputs()
    before = predictions(model, batch)
    compress(model, [batch], flops=0.5)
    assert torch.equal(predictions(model, batch), before) and model.config.model_type == "bert"


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
@torch.no_grad()
def test_dropped_branches_and_pruned_ones_go_together_in_either_order(family):
    model, batch = dense(family), inputs(family)
    drop, prune = LlmDrop(attention=[1], mlp=[2]), Optin(heads=["0", "0-1", "1"], neurons=["0-5", "1-9", "3,4"])
    one, other = apply(model, drop, prune), apply(model, prune, drop)
    torch.testing.assert_close(predictions(one, batch), predictions(other, batch))


def test_a_model_that_lost_branches_is_ranked_and_pruned_further():
    model = apply(dense("gpt2"), LlmDrop(attention=[1], mlp=[0]), Optin(heads=["0-1", "", "0-2"]))
    scores = rank(model, inputs("gpt2"))
    assert [len(row) for row in scores.heads] == [2, 0, 3] and [len(row) for row in scores.neurons] == [0, 12, 12]
    assert compress(model, [inputs("gpt2")], flops=0.6)(**inputs("gpt2")).logits.isfinite().all()


@pytest.mark.parametrize("family", ["vit", "deit"])
@torch.no_grad()
def test_merged_tokens_leave_and_the_special_ones_stay(family, tmp_path):
    model, batch = dense(family), inputs(family)
    merging = apply(model, Optin(merged=[0, 4, 3]))
    merging.save_pretrained(tmp_path)
    loaded = CONFIGS[family][0].from_pretrained(tmp_path).eval()
    output = loaded(**batch, output_hidden_states=True)
    special = 1 if family == "vit" else 2
    lengths = [states.shape[1] - special for states in output.hidden_states]
    assert lengths[0] == 16 and lengths[-1] == 9
    assert torch.equal(output.logits, merging(**batch).logits)


def test_merging_takes_no_mask():
    with pytest.raises(ValueError, match="attention_mask"):
        apply(dense("vit"), Optin(merged=[0, 4, 3]))(**inputs("vit"), attention_mask=torch.ones(2, 17))


@torch.no_grad()
def test_merging_equal_tokens_changes_nothing_but_attention_weights():
    model = dense("vit")
    model.vit.embeddings.position_embeddings[:, 1:] = 0
    batch = {"pixel_values": torch.full((2, 3, 16, 16), 0.3)}
    whole = model.vit(**batch).last_hidden_state
    merged = apply(model, Optin(merged=[0, 0, 5])).vit(**batch).last_hidden_state
    assert merged.shape[1] == whole.shape[1] - 5
    assert not torch.equal(merged[:, :1], whole[:, :1])  # fewer of them to attend to


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_tokens_save_their_share(family):
    model, batch = dense(family), inputs(family, batch=3)
    scores = rank(model, batch, tokens=True)
    assert [len(row) for row in scores.tokens] == [0, 16, 16]
    recipe = search(scores, 0.7, tokens=0.5)
    rest = scores.after_merging(recipe.merged)
    assert 0.85 * scores.macs - scores.macs / 10 <= rest.macs <= 0.85 * scores.macs
    kept = [[len(indices(entry)) for entry in entries] for entries in (recipe.heads, recipe.neurons)]
    assert rest.macs_of(*kept) <= 0.7 * scores.macs * (1 + 1e-6)
    assert apply(model, recipe)(**batch).logits.shape == (3, 3)


@torch.no_grad()
def test_token_scores_are_those_of_leaving_it_out():
    model, batch = dense("vit"), inputs("vit")
    scores = rank(model, batch, Scoring(loss_type="KL"), tokens=True)
    layer = layers_of(model)[2]
    whole = predictions(model, batch)
    layer.register_forward_pre_hook(lambda m, args: (torch.cat((args[0][:, :4], args[0][:, 5:]), 1), *args[1:]))
    expected = -logit_loss(whole, predictions(model, batch)).item()
    assert scores.tokens[2][3].item() == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_indices_are_stored_as_ranges():
    assert Optin(heads=[[0, 1, 2, 5], [3], []]).heads == ["0-2,5", "3", ""]
    assert indices("0-2, 5") == [0, 1, 2, 5] and ranges([7]) == "7"


def test_entries_of_layers_that_are_gone_go_and_their_tokens_leave_later():
    recipe = Optin(heads=["0", "1", "2", "3"], merged=[1, 2, 3, 4])
    assert recipe.renumbered([0, 3]) == Optin(heads=["0", "3"], merged=[1, 9])


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Optin(heads=["0"]), "has 1 entries; .* has 3 layers"),
        (Optin(heads=["0-4", "0", "0"]), "keeps 0-4 of layer 0, which has heads 0 to 3"),
        (Optin(neurons=["", "", "12"]), "keeps 12 of layer 2"),
        (Optin(merged=[0, 1]), "merged has 2 entries"),
        (Optin(merged=[0, 1, 1]), "'bert' needs all of them"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe, reason):
    with pytest.raises(ValueError, match=reason):
        apply(dense(), recipe)


@pytest.mark.parametrize(
    "fields", [{"heads": "0-2"}, {"heads": [3]}, {"neurons": ["a-b"]}, {"heads": [[-1]]}, {"merged": [1.5]}]
)
def test_fields_that_are_no_indices_are_refused(fields):
    with pytest.raises(ValueError, match=r"Optin|Indices"):
        Optin(**fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"loss_type": "L2"}, "loss_type='L2'"),
        ({"temperature": 0}, "temperature=0"),
        ({"aggregate": "max"}, "aggregate"),
    ],
)
def test_scoring_names_the_field_that_is_wrong(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Scoring(**fields)


def test_adapters_and_quantized_weights_are_refused():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(dense(), LoraConfig(r=2, target_modules=["query"])).base_model.model
    with pytest.raises(ValueError, match="adapters"):
        apply(adapted, Optin())
    quantized = dense()
    output = quantized.bert.encoder.layer[1].output.dense
    output.weight = torch.nn.Parameter(output.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'output\.dense' of layer 1 is a Linear\. Prune first"):
        apply(quantized, Optin())


def test_parts_that_another_recipe_replaced_are_named():
    for family, found in (
        ("gpt2", "'mlp.c_fc' of layer 0 is a RoutedFeedForward"),
        ("llama", "'mlp.down_proj' of layer 0 is missing"),
    ):
        with pytest.raises(ValueError, match=found):
            apply(dense(family), SPT(d_codeword=2), Optin())


def test_bad_calibrations_are_refused():
    model = dense()
    for calibration in (None, [], {}, [{"input_ids": torch.zeros(0, 7, dtype=torch.long)}]):
        with pytest.raises(ValueError, match="needs a calibration"):
            compress(model, calibration)
    bad = dense("vit")
    with pytest.raises(ValueError, match="not finite"):
        compress(bad, {"pixel_values": torch.full((2, 3, 16, 16), math.nan)})


def test_a_model_without_a_head_is_ranked_by_its_features_alone():
    model = BertModel(BertConfig(**WIDTHS, **TEXT)).eval()
    with pytest.raises(ValueError, match="has no head"):
        rank(model, inputs())
    assert rank(model, inputs(), Scoring(loss_type="MMD")).heads[0].shape == (4,)


def test_budgets_that_cannot_be_kept_are_refused():
    scores = rank(dense(), inputs(), Scoring(loss_type="MMD"))
    for flops, reason in ((0.01, "no room"), (0, "flops=0"), (1.5, "flops=1.5")):
        with pytest.raises(ValueError, match=reason):
            search(scores, flops)
    with pytest.raises(ValueError, match="not ranked"):
        search(scores, 0.5, tokens=0.5)


def test_other_families_are_refused_with_the_reason():
    cross = GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=64, add_cross_attention=True)
    with pytest.raises(ValueError, match="cross-attention"):
        apply(AutoModelForCausalLM.from_config(cross), Optin())
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage1", "stage2"])
    other = UperNetConfig(backbone_config=resnet, hidden_size=8, pool_scales=[1], use_auxiliary_head=False)
    with pytest.raises(ValueError, match="its backbone is a Swin"):
        apply(UperNetForSemanticSegmentation(other), Optin())


@torch.no_grad()
def test_dense_checkpoint_and_masks_convert_to_the_pruned_model():
    model = dense()
    masks = {
        "head_mask": [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        "neuron_mask": [[1] * 5 + [0] * 7, [0] * 6 + [1] * 6, [0] * 12],
    }
    arguments = {"config": {**WIDTHS, **TEXT, "num_labels": 3}, **masks}
    converted = convert_checkpoint("optin", model.state_dict(), arguments)
    pruned = apply(model, Optin(["0,2", "", "0-3"], ["0-4", "6-11", ""]))
    assert type(converted).__name__ == "SurgicalBertForSequenceClassification"
    assert torch.equal(predictions(converted, inputs()), predictions(pruned, inputs()))


def test_conversion_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"no \['masks'\]"):
        convert_checkpoint("optin", {}, {"masks": []})
    from hf_ext.convert.optin import scoring

    with pytest.raises(ValueError, match=r"no \['lambda'\]"):
        scoring({"lambda": 10})


def test_bfloat16_models_stay_bfloat16():
    pruned = apply(BertForSequenceClassification(BertConfig(**WIDTHS, **TEXT)).bfloat16(), Optin(heads=["0", "", "1"]))
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
