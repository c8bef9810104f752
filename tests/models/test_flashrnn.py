"""FlashRNN models: sizes, generation, padding, packing, classification, bad input, with all four cells."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hf_ext.models.flashrnn import (
    FlashRNNCache,
    FlashRNNConfig,
    FlashRNNForCausalLM,
    FlashRNNForSequenceClassification,
    FlashRNNModel,
)
from hf_ext.ops.flashrnn import CELLS
from tests.models.recurrent_language_model import assert_padding_changes_nothing
from tests.tiny import TINY, tokens


def tiny(**overrides):
    fields = TINY["flashrnn"]()[0].to_diff_dict() | {"use_cache": True, "eos_token_id": None, "problem_type": None}
    return FlashRNNConfig(**fields | overrides)


def build(model_class=FlashRNNForCausalLM, **overrides):
    torch.manual_seed(0)
    model = model_class(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(params=CELLS, scope="module")
def model(request):
    return build(function=request.param)


def counted(inputs, recurrent, biases, vocabulary=50304, width=768, heads=12, mlp=2048, layers=12):
    """Embedding, head and last norm; per layer two norms, input and output projection, recurrent matrices, biases, MLP."""
    mixer = inputs * width**2 + recurrent * width**2 // heads + biases * width + width**2
    return 2 * vocabulary * width + width + layers * (2 * width + mixer + 3 * width * mlp)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("flashrnn-lstm", 171_694_848),
        ("flashrnn-slstm", 171_694_848),
        ("flashrnn-gru", 164_027_136),
        ("flashrnn-elman", 148_664_064),
    ],
)
def test_presets_have_the_sizes_that_the_layers_add_up_to(preset, count):
    cell = CELLS[preset.removeprefix("flashrnn-")]
    assert count == counted(cell.num_inputs, cell.num_recurrent, cell.pre_activations)
    with torch.device("meta"):
        model = FlashRNNForCausalLM(FlashRNNConfig.from_preset(preset))
    assert model.num_parameters() == count


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="flashrnn-lstm, flashrnn-slstm"):
        FlashRNNConfig.from_preset("flashrnn-rnn")


def test_decoding_with_the_cache_equals_one_forward_pass(model):
    ids = tokens(61, length=20)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :9])
        cache, parts = first.past_key_values, [first.logits]
        for part in (ids[:, 9:10], ids[:, 10:17], ids[:, 17:18], ids[:, 18:]):
            parts.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_the_state_does_not_grow_with_length(model):
    sizes = []
    for length in (3, 50):
        cache = model(tokens(61, length=length)).past_key_values
        sizes.append([layer.recurrent_states[0].shape for layer in cache.layers])
    assert sizes[0] == sizes[1] == [(2, len(CELLS[model.config.function].states), 32)] * 2
    assert cache.get_seq_length() == 50


@pytest.mark.parametrize(
    "real",
    [[0] * 5 + [1] * 8, [1] * 8 + [0] * 5, [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1]],
    ids=["left", "right", "between"],
)
def test_padding_changes_nothing(model, real):
    assert_padding_changes_nothing(model, real)


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


def test_a_cache_that_does_not_know_the_layers_is_refused():
    with pytest.raises(ValueError, match="make it with FlashRNNCache"):
        build()(tokens(61), past_key_values=DynamicCache())


def test_decoding_compiles_without_graph_breaks():
    model, ids = build(), tokens(61)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    caches = [FlashRNNCache(model.config) for _ in range(2)]
    with torch.no_grad():
        for part in (ids, ids[:, :1], ids[:, 1:2]):
            logits = [m(part, past_key_values=cache).logits for m, cache in zip((compiled, model), caches)]
    torch.testing.assert_close(*logits)


def test_packed_sequences_equal_separate_ones(model):
    first, second = tokens(61, batch=1, length=7), tokens(61, batch=1, length=4)
    with torch.no_grad():
        expected = torch.cat([model(x).logits for x in (first, second)], 1)
        packed = model(torch.cat((first, second), 1), cu_seqlens=torch.tensor([0, 7, 11])).logits
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


def test_a_saved_model_loads_through_the_auto_classes(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FlashRNNConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens(61)).logits, model(tokens(61)).logits, atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_reads_the_last_real_token(side):
    model = build(FlashRNNForSequenceClassification, num_labels=3)
    ids, padding = tokens(61, batch=1, length=6), torch.zeros(1, 3, dtype=torch.long)
    order = (padding, ids) if side == "left" else (ids, padding)
    mask = torch.cat([torch.ones_like(x) if x is ids else x for x in order], 1)
    with torch.no_grad():
        padded = model(torch.cat(order, 1), attention_mask=mask).logits
        torch.testing.assert_close(padded, model(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss"),
    [
        (3, torch.tensor([0, 2]), lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels)),
        (1, torch.tensor([0.5, -1.0]), lambda logits, labels: (logits[:, 0] - labels).square().mean()),
    ],
    ids=["classes", "numbers"],
)
def test_the_loss_of_a_classifier_fits_its_labels(num_labels, labels, loss):
    model = build(FlashRNNForSequenceClassification, num_labels=num_labels)
    output = model(tokens(61), labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_recurrent_weights_start_at_the_scale_of_a_head():
    torch.manual_seed(0)
    rnn = FlashRNNModel(tiny(num_heads=1)).layers[0].attn.rnn
    assert rnn.weight_hh.abs().max() <= 32**-0.5 and rnn.weight_hh.std() > 0.5 * 32**-0.5
    assert (rnn.bias[1] == 1).all() and (rnn.bias[[0, 2, 3]] == 0).all()


def test_the_bounds_of_the_configuration_reach_the_op():
    free, bound = build(function="elman"), build(function="elman", forward_clipval=0.01)
    ids = tokens(61)
    assert not torch.allclose(free(ids).logits, bound(ids).logits)


WRONG_CONFIGS = {
    "num_heads=5 must divide hidden_size=32": {"num_heads": 5},
    "function must be one of": {"function": "rnn"},
    "intermediate_size must be at least 1": {"intermediate_size": 0},
    "forward_clipval must be above 0": {"forward_clipval": 0.0},
    "gradient_recurrent_clipval must be above 0": {"gradient_recurrent_clipval": -1.0},
    "norm_eps must be above 0": {"norm_eps": 0.0},
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
    function=st.sampled_from(list(CELLS)),
    num_heads=st.sampled_from([1, 2, 8]),
    num_hidden_layers=st.integers(1, 2),
    gradient_recurrent_cut=st.booleans(),
    gradient_recurrent_clipval=st.sampled_from([None, 0.1]),
    length=st.integers(1, 30),
)
def test_any_configuration_trains_and_decodes_as_it_reads(length, **overrides):
    model = FlashRNNForCausalLM(tiny(**overrides)).eval()
    ids = tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-5, rtol=1e-3)
