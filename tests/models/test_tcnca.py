"""TCNCA: size, generation, padding, constant memory, classification, conversion, bad input."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.convert.tcnca import ARGUMENTS
from hf_ext.models.tcnca import TCNCACache, TCNCAConfig, TCNCAForCausalLM, TCNCAForSequenceClassification
from hf_ext.ops.chunked_attention import ACTIVATIONS
from tests.models.recurrent_language_model import assert_padding_changes_nothing
from tests.tiny import TINY, tokens

KINDS = {
    "rotary": {},
    "simple": {"rel_pos_bias": "simple", "layers_per_block": 2},
    "laplace": {"attention_activation": "laplace"},
    "no chunks": {"chunk_size": -1, "rel_pos_bias": "simple", "max_position_embeddings": 40},
}


def tiny(**overrides):
    return TCNCAConfig(**TINY["tcnca"]()[0].to_diff_dict() | {"use_cache": True} | overrides)


def build(model_class=TCNCAForCausalLM, **overrides):
    torch.manual_seed(0)
    model = model_class(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(params=KINDS)
def model(request):
    return build(**KINDS[request.param])


def test_the_enwik8_preset_has_39_million_parameters():
    with torch.device("meta"):
        model = TCNCAForCausalLM(TCNCAConfig.from_preset("tcnca-enwik8"))
    assert model.num_parameters() == 39_211_520
    assert model.config.receptive_field == 9361


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="tcnca-enwik8"):
        TCNCAConfig.from_preset("tcnca-lra")


def test_decoding_with_the_cache_equals_one_forward_pass(model):
    ids = tokens(61, length=27)
    with torch.no_grad():
        whole, first = model(ids).logits, model(ids[:, :9])
        cache, parts = first.past_key_values, [first.logits]
        for part in ids[:, 9:].split((1, 7, 1, 1, 8), 1):
            parts.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 27


@pytest.mark.parametrize(
    "mask",
    [[0] * 5 + [1] * 8, [1] * 8 + [0] * 5, [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1]],
    ids=["left", "right", "between"],
)
def test_padding_changes_nothing(model, mask):
    assert_padding_changes_nothing(model, mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_goes_on_after_padding(model, side):
    ids, following = tokens(61, batch=1, length=8), tokens(61, batch=1, length=4)
    padding = torch.zeros(1, 5, dtype=torch.long)
    order = (padding, ids) if side == "left" else (ids, padding)
    mask = torch.cat([torch.ones_like(x) if x is ids else x for x in order], 1)
    with torch.no_grad():
        cache = model(torch.cat(order, 1), attention_mask=mask).past_key_values
        steps = [model(x, past_key_values=cache).logits for x in following.split(1, 1)]
        expected = model(torch.cat((ids, following), 1)).logits[:, -4:]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}], ids=["greedy", "beam", "sampled"]
)
def test_a_left_padded_batch_generates_what_single_prompts_do(model, how):
    short, long = tokens(61, batch=1, length=3), tokens(61, batch=1, length=7) % 60 + 1
    batch = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
    mask = (torch.arange(7) >= torch.tensor([[4], [0]])).long()
    together = model.generate(batch, attention_mask=mask, max_new_tokens=8, **how)[:, 7:]
    apart = [model.generate(x, max_new_tokens=8, **how)[:, x.shape[1] :] for x in (short, long)]
    assert torch.equal(together, torch.cat(apart))


def test_generation_equals_greedy_search_without_a_cache(model):
    ids = tokens(61, length=5)
    expected = ids
    for _ in range(8):
        expected = torch.cat((expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 2}])
def test_other_ways_to_cache_generate_the_same(options):
    model, ids = build(), tokens(61, length=5)
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, **options), expected)


def test_the_cache_does_not_grow_with_length():
    sizes = []
    for length in (9, 50):
        cache = build()(tokens(61, length=length)).past_key_values
        sizes.append([x.numel() for own in cache.layers for x in (own.tcn.rings, own.chunk.keys, own.chunk.values)])
    assert sizes[0] == sizes[1]


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="must be made with TCNCACache"):
        build()(tokens(61), past_key_values=DynamicCache())


def test_decoding_compiles_without_graph_breaks():
    model, ids = build(), tokens(61)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    caches = [TCNCACache(model.config) for _ in range(2)]
    with torch.no_grad():
        for part in (ids, ids[:, :1], ids[:, 1:2]):
            logits = [m(part, past_key_values=cache).logits for m, cache in zip((compiled, model), caches)]
    torch.testing.assert_close(*logits)


def test_no_token_sees_a_later_one():
    model, ids = build(), tokens(61)
    changed = ids.clone()
    changed[:, 7:] = ids[:, 7:] % 60 + 1
    with torch.no_grad():
        torch.testing.assert_close(model(changed).logits[:, :7], model(ids).logits[:, :7])


def test_attention_does_not_leave_its_chunk():
    model = build()
    model.set_attn_implementation("eager")
    attentions = model(tokens(61), output_attentions=True, use_cache=False).attentions
    assert [x.shape for x in attentions] == [(2, 3, 5, 5)] * 2, "12 tokens are three chunks of 5"


def test_a_bidirectional_classifier_sees_both_sides():
    model, ids = build(TCNCAForSequenceClassification, causal=False), tokens(61)
    states = model.model(ids).last_hidden_state
    ids[:, -1] = ids[:, -1] % 60 + 1
    assert (model.model(ids).last_hidden_state[:, 0] != states[:, 0]).any()


def test_a_classifier_means_over_real_tokens():
    model, ids = build(TCNCAForSequenceClassification), tokens(61)
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:1], model(ids[:1, :8]).logits)


def test_a_language_model_must_be_causal():
    with pytest.raises(ValueError, match="causal=True"):
        TCNCAForCausalLM(tiny(causal=False))


def test_logits_to_keep_keeps_the_last_ones():
    model, ids = build(), tokens(61)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_dropout_drops_whole_channels_on_request():
    model = build(dropout=0.5, feature_dropout=True).train()
    states = []
    model.model.layers[0].attention.mx_proj.register_forward_pre_hook(lambda module, given: states.append(given[0]))
    model(tokens(61))
    dropped = (states[0] == 0).all(1)
    assert dropped.any() and not dropped.all()


def as_the_reference_names_them(state):
    named = {}
    for name, x in state.items():
        name = name.removeprefix("model.").replace(".attention.", ".mega_layer.").replace(".mlp.", ".nffn.")
        name = re.sub(r"(^|\.)norm\.", lambda match: ".norm.norm." if match[1] else "final_norm.norm.", name)
        if name.endswith((".tcn.weight", ".tcn.bias")):
            stem, _, kind = name.rpartition("tcn.")
            convolutions = [((i, b), y) for i, block in enumerate(x) for b, y in enumerate(block)]
            named |= {
                f"{stem}move.convs.{i}.{b}.{kind}": y.unsqueeze(1) if kind == "weight" else y
                for (i, b), y in convolutions
            }
        elif name != "lm_head.weight":
            named[name.replace(".tcn.", ".move.")] = x
    return named


@pytest.mark.parametrize("changes", [{}, {"final_norm_affine": True, "intermediate_size": 0, "layers_per_block": 2}])
def test_the_converter_puts_every_tensor_into_its_place(changes):
    model = build(tie_word_embeddings=True, **changes)
    arguments = {ours: getattr(model.config, field) for ours, (field, _) in ARGUMENTS.items()}
    converted = convert_checkpoint("tcnca", as_the_reference_names_them(model.state_dict()), arguments).state_dict()
    assert all(torch.equal(converted[name], x) for name, x in model.state_dict().items())


def test_the_converter_names_unknown_arguments_and_mega_layers():
    with pytest.raises(ValueError, match="no argument heads; it has"):
        convert_checkpoint("tcnca", {}, {"heads": 4})
    with pytest.raises(ConversionError, match=r"left over: model.layers.0.attention.tcn.delta"):
        convert_checkpoint("tcnca", {"layers.0.mega_layer.move.delta": torch.zeros(4, 2, 1)}, {"num_layers": 1})


WRONG_CONFIGS = {
    "chunk_size": {"chunk_size": 0},
    "z_dim": {"z_dim": 15},
    "kernel_size": {"kernel_size": 0},
    "rel_pos_bias": {"rel_pos_bias": "alibi"},
    "attention_activation": {"attention_activation": "relu"},
    "tcn_activation": {"tcn_activation": "tanh"},
    "intermediate_size": {"intermediate_size": -1},
    "attention_dropout": {"attention_dropout": 1.0},
    "layer_norm_eps": {"layer_norm_eps": 0.0},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


WRONG_INPUTS = {
    "either input_ids or inputs_embeds": {},
    "hold something": {"input_ids": torch.zeros(2, 0, dtype=torch.long)},
    "attention_mask must be": {"input_ids": tokens(61), "attention_mask": torch.ones(2, 5)},
    "41 tokens are more than max_position_embeddings=40": {"input_ids": tokens(61, length=41)},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        build(**KINDS["no chunks"])(**WRONG_INPUTS[message])


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    chunk_size=st.sampled_from([-1, 1, 4, 7, 64]),
    rel_pos_bias=st.sampled_from(["simple", "rotary"]),
    attention_activation=st.sampled_from(ACTIVATIONS),
    kernel_size=st.integers(1, 5),
    dilation_factor=st.integers(1, 4),
    depth=st.integers(1, 3),
    layers_per_block=st.integers(1, 2),
    intermediate_size=st.sampled_from([0, 24]),
    final_norm_affine=st.booleans(),
    tcn_activation=st.sampled_from(TCNCAConfig.CHOICES["tcn_activation"]),
    length=st.integers(1, 40),
)
def test_any_configuration_trains_and_decodes_as_it_reads(length, **overrides):
    model = TCNCAForCausalLM(tiny(num_hidden_layers=1, **overrides)).eval()
    ids = tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    assert math.isfinite(output.loss.item())
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-5, rtol=1e-3)
