"""The Gated Linear Attention Transformer: sizes, generation, padding, packing, hybrids, published checkpoints, bad input."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.models.gla import GLACache, GLAConfig, GLAForCausalLM, GLAModel
from tests.passport import Subject, check_attention_implementations, check_batch_independence
from tests.tiny import TINY, tokens

WINDOWED = [
    {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 5, "qkv_bias": True},
    {"layers": [3], "num_heads": 2},
]


def tiny(**overrides):
    config = TINY["gla"]()[0]
    return GLAConfig(
        **config.to_diff_dict() | {"use_cache": True, "eos_token_id": None, "bos_token_id": None} | overrides
    )


def build(seed=0, **overrides):
    torch.manual_seed(seed)
    model = GLAForCausalLM(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


MODELS = {
    "convolution, shared heads": {},
    "plain": {"use_short_conv": False, "num_kv_heads": None},
    "hybrid": {"num_hidden_layers": 4, "attn": WINDOWED},
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return build(**MODELS[request.param])


@pytest.mark.parametrize(
    ("preset", "overrides", "count"),
    [
        ("gla-340m", {}, 341_707_776),
        ("gla-340m", {"tie_word_embeddings": False}, 374_475_776),
        ("gla-1.3b", {}, 1_365_514_240),
    ],
)
def test_presets_have_the_published_sizes(preset, overrides, count):
    with torch.device("meta"):
        model = GLAForCausalLM(GLAConfig.from_preset(preset, **overrides))
    assert model.num_parameters() == count


def test_the_7b_preset_has_the_shapes_of_its_recipe():
    with torch.device("meta"):
        model = GLAForCausalLM(GLAConfig.from_preset("gla-7b"))
    attention = model.model.layers[31].attn
    assert attention.q_proj.weight.shape == (4096, 4096) and attention.k_proj.weight.shape == (1024, 4096)
    assert attention.g_proj is None and isinstance(attention.feature_map, torch.nn.ReLU)
    assert model.model.layers[0].mlp.up_proj.weight.shape == (14336, 4096)


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match=r"gla-340m, gla-1\.3b, gla-7b"):
        GLAConfig.from_preset("gla-3b")


def test_decoding_with_the_cache_equals_one_forward_pass(model):
    ids = tokens(61, length=20)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :9])
        cache, parts = first.past_key_values, [first.logits]
        for part in (ids[:, 9:10], ids[:, 10:17], ids[:, 17:18], ids[:, 18:]):
            parts.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_a_plain_dynamic_cache_serves_too(model):
    ids = tokens(61, length=8)
    with torch.no_grad():
        expected = model(ids).logits[:, 5:]
        cache = DynamicCache(config=model.config)
        model(ids[:, :5], past_key_values=cache)
        torch.testing.assert_close(model(ids[:, 5:], past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-4)


def test_the_state_does_not_grow_with_length():
    model = build()
    sizes = []
    for length in (3, 50):
        cache = model(tokens(61, length=length)).past_key_values
        sizes.append([x.numel() for layer in cache.layers for x in (layer.recurrent_states[0], layer.conv_states[0])])
    assert sizes[0] == sizes[1]
    assert cache.get_seq_length() == 50


def assert_padding_changes_nothing(model, real):
    ids, mask = tokens(61, batch=1, length=8), torch.tensor([real, [1] * 13])
    padded = tokens(61, batch=2, length=13)
    padded[0, mask[0] == 1] = ids[0]
    with torch.no_grad():
        output = model(padded, attention_mask=mask)
        torch.testing.assert_close(output.logits[:1, mask[0] == 1], model(ids).logits, atol=1e-5, rtol=1e-4)


def test_padding_on_the_left_changes_nothing(model):
    assert_padding_changes_nothing(model, [0] * 5 + [1] * 8)


def test_padding_on_the_right_changes_nothing(model):
    assert_padding_changes_nothing(model, [1] * 8 + [0] * 5)


@pytest.mark.parametrize("name", ["convolution, shared heads", "plain"])
def test_padding_between_tokens_changes_nothing(name):
    """In a hybrid it does: softmax layers rotate by place, and a gap shifts places."""
    assert_padding_changes_nothing(build(**MODELS[name]), [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_goes_on_after_padding(side):
    model = build()
    ids, following = tokens(61, batch=1, length=8), tokens(61, batch=1, length=2)
    padding = torch.zeros(1, 5, dtype=torch.long)
    order = (padding, ids) if side == "left" else (ids, padding)
    mask = torch.cat([torch.ones_like(x) if x is ids else x for x in order], 1)
    with torch.no_grad():
        cache = model(torch.cat(order, 1), attention_mask=mask).past_key_values
        steps = [model(x, past_key_values=cache).logits for x in following.split(1, 1)]
        expected = model(torch.cat((ids, following), 1)).logits[:, -2:]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-4)


def test_a_layer_returns_exactly_zero_at_padding(model):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    outputs = []
    hooks = [layer.attn.register_forward_hook(lambda m, i, o: outputs.append(o[0])) for layer in model.model.layers]
    model(tokens(61, length=6), attention_mask=mask)
    for hook in hooks:
        hook.remove()
    assert all((output[mask == 0] == 0).all() and (output[mask == 1] != 0).any() for output in outputs)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}], ids=["greedy", "beam", "sampled"]
)
def test_a_left_padded_batch_generates_what_single_prompts_do(model, how):
    short, long = tokens(61, batch=1, length=3), tokens(61, batch=1, length=7) % 60 + 1
    batch = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
    mask = (torch.arange(7) >= torch.tensor([[4], [0]])).long()
    together = model.generate(batch, attention_mask=mask, max_new_tokens=6, **how)[:, 7:]
    apart = [model.generate(x, max_new_tokens=6, **how)[:, x.shape[1] :] for x in (short, long)]
    assert torch.equal(together, torch.cat(apart))


def test_generation_equals_greedy_search_without_a_cache(model):
    ids = tokens(61, length=5)
    expected = ids
    for _ in range(6):
        expected = torch.cat((expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 2}])
def test_other_ways_to_cache_generate_the_same(model, options):
    ids = tokens(61, length=5)
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, **options), expected)


def test_a_cache_that_does_not_know_the_layers_is_refused():
    with pytest.raises(ValueError, match="make it with GLACache"):
        build()(tokens(61), past_key_values=DynamicCache())


def test_decoding_compiles_without_graph_breaks():
    model, ids = build(), tokens(61)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    caches = [GLACache(model.config) for _ in range(2)]
    with torch.no_grad():
        for part in (ids, ids[:, :1], ids[:, 1:2], ids[:, 2:3]):
            logits = [m(part, past_key_values=cache).logits for m, cache in zip((compiled, model), caches)]
    torch.testing.assert_close(*logits)
    assert caches[0].get_seq_length() == 15


def test_the_length_of_an_exported_model_may_be_dynamic():
    model = build()
    dynamic = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=512)}, "use_cache": None}
    inputs = {"input_ids": tokens(61), "use_cache": False}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic).module()
    longer = tokens(61, length=70)
    torch.testing.assert_close(program(input_ids=longer, use_cache=False).logits, model(longer).logits)


PUBLISHED = {  # config.json of fla-hub/gla-1.3B-100B and its like, with fields that have gone since
    "architectures": ["GLAForCausalLM"], "attn": None, "attn_mode": "chunk", "clamp_min": None, "conv_size": 4, "elementwise_affine": True,
    "expand_k": 0.5, "expand_v": 1, "fuse_cross_entropy": True, "fuse_norm": True, "hidden_act": "swish", "hidden_ratio": 4,
    "hidden_size": 2048, "intermediate_size": None, "model_type": "gla", "norm_eps": 1e-06, "num_heads": 4, "num_hidden_layers": 24,
    "num_kv_heads": None, "share_conv_kernel": True, "torch_dtype": "bfloat16", "use_short_conv": False, "vocab_size": 32000,
}  # fmt: skip


def test_a_published_configuration_loads_through_auto_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GLAConfig) and config.dtype == torch.bfloat16
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == 1_365_514_240


def test_a_conversation_goes_on_from_the_returned_cache():
    model = build()
    ids = tokens(61, batch=1, length=5)
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert isinstance(first.past_key_values, GLACache)
    longer = torch.cat((first.sequences, tokens(61, batch=1, length=3)), 1)
    again = model.generate(longer, max_new_tokens=4, do_sample=False, past_key_values=first.past_key_values)
    assert torch.equal(again, model.generate(longer, max_new_tokens=4, do_sample=False))


def test_packed_sequences_equal_separate_ones(model):
    first, second = tokens(61, batch=1, length=7), tokens(61, batch=1, length=4)
    with torch.no_grad():
        expected = torch.cat([model(x).logits for x in (first, second)], 1)
        packed = model(torch.cat((first, second), 1), cu_seqlens=torch.tensor([0, 7, 11])).logits
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


def test_packed_sequences_cannot_continue_a_cache():
    model = build()
    with pytest.raises(ValueError, match="cu_seqlens"):
        model(tokens(61, batch=1), cu_seqlens=torch.tensor([0, 12]), past_key_values=GLACache(model.config))


def test_logits_to_keep_keeps_the_last_ones():
    model, ids = build(), tokens(61)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_the_loss_is_the_mean_over_next_tokens():
    model, ids = build(), tokens(61)
    labels = ids.clone()
    labels[0, :5] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_the_l2_penalty_moves_the_gradient_and_not_the_loss():
    plain, penal = build(), build(use_l2warp=True)
    ids = tokens(61)
    losses = [model(ids, labels=ids).loss for model in (plain, penal)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    logits = plain(ids).logits
    top, index = logits.max(-1, keepdim=True)
    expected = torch.zeros_like(logits).scatter(-1, index, 1e-4 * top / index.numel())
    hidden = plain.model(ids).last_hidden_state
    difference = penal.lm_head.weight.grad - plain.lm_head.weight.grad
    torch.testing.assert_close(difference, torch.einsum("btv,btd->vd", expected, hidden), atol=1e-6, rtol=1e-3)


def test_hidden_states_and_attentions_of_a_hybrid_are_recorded():
    model = build(**MODELS["hybrid"])
    model.set_attn_implementation("eager")
    output = model(tokens(61), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5
    assert [x.shape for x in output.attentions] == [(2, 4, 12, 12), (2, 2, 12, 12)]
    assert (output.attentions[0][0, 0, 11, :7] == 0).all(), "the window is five tokens"


def test_the_softmax_layers_of_a_hybrid_give_the_same_under_eager_and_sdpa():
    config = tiny(**MODELS["hybrid"], use_cache=False)
    subject = Subject(GLAForCausalLM, config, {"input_ids": tokens(61)})
    check_attention_implementations(subject)
    check_batch_independence(subject)


def fused(state):
    """The same weights as they were saved before February 2025."""
    fused = {}
    for name, x in state.items():
        if name.endswith("mlp.up_proj.weight"):
            continue
        up = name.replace("gate_proj", "up_proj")
        fused[name] = torch.cat((x, state[up])) if name.endswith("mlp.gate_proj.weight") else x.clone()
    return fused


def test_old_checkpoints_with_a_fused_gate_load_and_are_saved_split(tmp_path):
    model = build()
    model.config.save_pretrained(tmp_path)
    save_file(fused(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = GLAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    again = GLAForCausalLM.from_pretrained(tmp_path / "again")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("old", [False, True])
def test_the_converter_takes_old_and_new_checkpoints(old):
    model = build()
    state = fused(model.state_dict()) if old else model.state_dict()
    arguments = tiny().to_diff_dict()
    converted = convert_checkpoint("gla", state, arguments)
    assert all(torch.equal(x, converted.state_dict()[name]) for name, x in model.state_dict().items())


def test_the_converter_names_unknown_arguments_and_every_misfit():
    with pytest.raises(ValueError, match="no argument heads; it has"):
        convert_checkpoint("gla", {}, {"heads": 4})
    state = build().state_dict()
    del state["model.norm.weight"]
    state["extra"] = torch.zeros(1)
    arguments = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "use_short_conv": True,
    }
    with pytest.raises(ConversionError, match=r"left over: extra(.|\n)*missing: model.norm.weight"):
        convert_checkpoint("gla", state, arguments)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "g_norm_swish_gate"), ({"fuse_norm": False}, "g_norm"), ({"use_output_gate": False}, "g_norm")],
)
def test_the_name_of_the_head_norm_follows_the_reference(settings, name):
    assert f"model.layers.0.attn.{name}.weight" in GLAForCausalLM(tiny(**settings)).state_dict()


WRONG_CONFIGS = {
    "expand_k": {"expand_k": 0.3},
    "expand_v": {"expand_v": 0.0},
    "num_kv_heads": {"num_kv_heads": 3},
    "hidden_act": {"hidden_act": "gelu"},
    "feature_map": {"feature_map": "elu"},
    "clamp_min": {"clamp_min": 0.5},
    "attnres_block_size": {"attnres_block_size": 2},
    "attn_mode": {"attn_mode": "fused_chunk"},
    "norm_eps": {"norm_eps": 0.0},
    "attn needs": {"attn": {"layers": [0]}},
    "attn names layers": {"attn": {"layers": [7], "num_heads": 2}},
    "attn has num_heads": {"attn": {"layers": [0], "num_heads": 3}},
    "all must be equal": {
        "attn": [{"layers": [0], "num_heads": 2, "window_size": 4}, {"layers": [1], "num_heads": 2, "window_size": 8}]
    },
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


def test_input_is_given_once():
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        build()()


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    num_heads=st.sampled_from([1, 2, 4]),
    shared=st.booleans(),
    expand_k=st.sampled_from([0.5, 1.0]),
    expand_v=st.sampled_from([1.0, 2.0]),
    use_short_conv=st.booleans(),
    use_output_gate=st.booleans(),
    elementwise_affine=st.booleans(),
    feature_map=st.sampled_from([None, *GLAConfig.FEATURE_MAPS]),
    clamp_min=st.sampled_from([None, -0.1]),
    length=st.integers(1, 70),
)
def test_any_configuration_trains_and_decodes_as_it_reads(num_heads, shared, length, **overrides):
    model = GLAForCausalLM(
        tiny(num_heads=num_heads, num_kv_heads=1 if shared else None, num_hidden_layers=1, **overrides)
    ).eval()
    ids = tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    assert math.isfinite(output.loss.item())
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-5, rtol=1e-3)


def test_the_base_model_gives_the_hidden_states_of_the_language_model():
    model, ids = build(), tokens(61)
    base = GLAModel(model.config)
    base.load_state_dict(model.model.state_dict())
    torch.testing.assert_close(model.lm_head(base.eval()(ids).last_hidden_state), model(ids).logits)
