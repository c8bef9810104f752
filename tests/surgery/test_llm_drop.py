"""LLM-Drop on every family: what is dropped is gone, and everything Transformers does to a model still works on it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DynamicCache,
    OPTConfig,
    StaticCache,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.families import family_of, layers_of
from hf_ext.surgery.llm_drop import choose, compute_similarities, rank

LAYERS = 6
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 5},
    "qwen2": {k: v for k, v in SMALL.items() if k != "head_dim"}
    | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "gemma2": SMALL | {"sliding_window": 5},
    "gpt2": GPT2,
}
WIDTHS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
families = pytest.mark.parametrize("family", SIZES)


def dense(family="llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES[family])).eval()


def dropped(family="llama", attention=(0, 3), mlp=(1, 3)):
    return apply(dense(family), LlmDrop(list(attention), list(mlp)))


@families
@torch.no_grad()
def test_dropping_equals_modules_that_return_zero(family):
    model, expected = dropped(family), dense(family)
    parts = family_of(expected)
    for branch, indices in ((parts.attention, (0, 3)), (parts.mlp, (1, 3))):
        for layer in (layers_of(expected)[i] for i in indices):
            module = getattr(layer, branch.module)
            module.register_forward_hook(
                lambda m, args, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
            )
            if branch.norm_out:
                getattr(layer, branch.norm_out).register_forward_hook(lambda m, args, out: out * 0)
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)


@families
@torch.no_grad()
def test_restores_through_the_auto_class(family, tmp_path):
    model = dropped(family)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert AutoConfig.from_pretrained(tmp_path).model_type == f"surgical_{family}"


@families
@pytest.mark.parametrize("attention", [(0,), (0, 1), (1, 2, 5)])
def test_generating_with_the_cache_equals_without(family, attention):
    model = dropped(family, attention=attention, mlp=(2,))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(IDS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(IDS, use_cache=False, **options))


@families
@torch.no_grad()
def test_decoding_step_without_positions_continues_after_the_cache(family):
    model = dropped(family, attention=(0,), mlp=())
    whole = model(IDS).logits
    cache = DynamicCache(config=model.config)
    model(IDS[:, :5], past_key_values=cache)
    steps = [model(IDS[:, t : t + 1], past_key_values=cache).logits for t in range(5, 9)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, 5:], atol=1e-5, rtol=1e-4)


def test_static_cache_and_beam_search_work():
    model = dropped()
    static = model.generate(
        IDS, max_new_tokens=4, do_sample=False, past_key_values=StaticCache(model.config, max_cache_len=16)
    )
    assert torch.equal(static, model.generate(IDS, max_new_tokens=4, do_sample=False))
    assert model.generate(IDS, max_new_tokens=4, num_beams=3).shape[0] == 2


def test_dropped_attentions_hold_no_cache():
    model = dropped(attention=(0, 2, 3), mlp=())
    cache = model(IDS, use_cache=True).past_key_values
    filled = [layer for layer in cache.layers if layer.is_initialized]
    assert len(filled) == LAYERS - 3


def test_left_padding_changes_nothing():
    model = dropped()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(12) >= 3).long().expand(2, -1)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(
        model.generate(padded, attention_mask=mask, **options)[:, 12:], model.generate(IDS, **options)[:, 9:]
    )


def test_hidden_states_keep_their_places():
    assert len(dropped()(IDS, output_hidden_states=True).hidden_states) == LAYERS + 1


def test_the_given_model_stays_as_it_was():
    model = dense()
    before = model(IDS).logits
    apply(model, LlmDrop([0, 1], [2]))
    assert torch.equal(model(IDS).logits, before) and model.config.model_type == "llama"


def test_changed_model_shares_the_tensors_that_stay():
    model = dense()
    assert apply(model, LlmDrop([0])).lm_head.weight is model.lm_head.weight


def test_dropping_twice_equals_dropping_at_once(tmp_path):
    twice = apply(apply(dense(), LlmDrop([1])), LlmDrop([4], [4]))
    assert torch.equal(twice(IDS).logits, dropped(attention=(1, 4), mlp=(4,))(IDS).logits)
    twice.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, twice(IDS).logits)


def test_other_heads_follow(tmp_path):
    dropped().save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier).__name__ == "SurgicalLlamaForSequenceClassification"
    assert classifier(IDS).logits.shape == (2, 3)


def test_8_bit_lora_and_generate_together(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    dropped().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.generate(input_ids=IDS, max_new_tokens=3).shape == (2, 12)


@families
def test_batched_padded_calibration_equals_one_sample_at_a_time(family):
    model = dense(family)
    short = IDS[1:, :6]
    padded = torch.stack([IDS[0], torch.cat([short[0], torch.zeros(3, dtype=torch.long)])])
    mask = (padded != 0).long()
    together = compute_similarities(model, [{"input_ids": padded, "attention_mask": mask}])
    apart = compute_similarities(model, [IDS[:1], short])
    for name in ("attention", "mlp", "attention_after_norm", "mlp_after_norm", "block", "consecutive"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), atol=1e-5, rtol=1e-4)


def test_what_is_dropped_is_not_chosen_again():
    model, gone = dense(), []
    for _ in range(LAYERS - 1):
        recipe = choose(compute_similarities(model, [IDS]), 1)
        gone += recipe.attention
        model = apply(model, recipe)
    assert len(set(gone)) == LAYERS - 1


def test_reference_gap_is_one_layer_longer():
    found = compute_similarities(dense(), [IDS])
    own = rank(found, 2, "block_consecutive")
    assert own[0] == int(found.consecutive[:, 1].argmax())
    assert rank(found, 2, "block_consecutive", reference_gap=True)[0] == int(found.consecutive[:, 2].argmax())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, LAYERS - 1), max_size=LAYERS - 1), st.sets(st.integers(0, LAYERS - 1)), st.integers(1, 8))
def test_any_choice_of_layers_runs_and_has_fewer_parameters(attention, mlp, length):
    model = apply(dense(), LlmDrop(list(attention), list(mlp)))
    assert model(IDS[:, :length]).logits.isfinite().all()
    assert (model.num_parameters() < dense().num_parameters()) == bool(attention or mlp)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: apply(dense(), LlmDrop([LAYERS])), "layers 0 to 5"),
        (lambda: LlmDrop([-1]), "layer indices from 0"),
        (lambda: LlmDrop([True, False]), "layer indices from 0"),
        (lambda: apply(dense(), LlmDrop(list(range(LAYERS)))), "cannot drop every attention"),
        (lambda: dropped("qwen2", attention=(0, 1, 2)), "every attention of type 'full_attention'"),
        (lambda: choose(compute_similarities(dense(), [IDS]), 7), "there are 6 to choose from"),
        (lambda: choose(compute_similarities(dense(), [IDS]), 1, "heads"), "it is one of"),
        (lambda: compute_similarities(dense(), []), "at least one calibration batch"),
        (lambda: compute_similarities(dense(), [torch.zeros(0, 4, dtype=torch.long)]), "shape"),
    ],
)
def test_bad_requests_say_what_is_allowed(recipe, message):
    with pytest.raises(ValueError, match=message):
        recipe()


def test_unknown_family_lists_the_known_ones():
    from transformers import BloomConfig, BloomModel

    with pytest.raises(ValueError, match="llama, mistral"):
        apply(BloomModel(BloomConfig(hidden_size=8, n_layer=1, n_head=1, vocab_size=9)), LlmDrop([0]))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(**WIDTHS, vocab_size=9), "'bert' norms follow the residual sum"),
        (
            OPTConfig(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9),
            "'opt' are more",
        ),
    ],
)
def test_layers_without_two_branches_of_their_own_are_refused_with_the_reason(config, reason):
    with pytest.raises(ValueError, match=reason):
        apply(AutoModel.from_config(config), LlmDrop([0]))


@torch.no_grad()
def test_image_classifiers_are_measured_and_dropped_too():
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**WIDTHS | {"num_hidden_layers": 3}, image_size=8, patch_size=4)).eval()
    model.vit.layers[1].attention.o_proj.weight.zero_()
    images = torch.randn(2, 3, 8, 8)
    smaller = apply(model, choose(compute_similarities(model, [{"pixel_values": images}]), 1))
    assert smaller.config.surgery == [{"name": "llm_drop", "attention": [1], "mlp": []}]
    torch.testing.assert_close(smaller(images).logits, model(images).logits)


def test_unknown_surgery_in_a_config_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="names the surgery 'scalpel'"):
        AutoConfig.for_model("surgical_llama", surgery=[{"name": "scalpel"}])


def test_released_checkpoints_with_boolean_lists_and_dense_weights_convert():
    from hf_ext.convert import convert_checkpoint

    flags = [index in (0, 3) for index in range(LAYERS)]
    arguments = SMALL | {
        "model_type": "llama",
        "drop_attn_list": flags,
        "drop_mlp_list": [1, 3],
        "auto_map": {"x": "y"},
    }
    model = convert_checkpoint("llm_drop", dense().state_dict(), arguments)
    assert torch.equal(model(IDS).logits, dropped()(IDS).logits)
