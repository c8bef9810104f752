"""Aaren: the paper's sizes, streams that equal the parallel form, masks, heads, conversion, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForTimeSeriesPrediction, DynamicCache, pipeline

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.models.aaren import (
    AarenCache,
    AarenConfig,
    AarenForPrediction,
    AarenForTimeSeriesClassification,
    AarenModel,
)
from tests.tiny import TINY, series


def tiny(**overrides):
    return AarenConfig(**TINY["aaren"]()[0].to_diff_dict() | overrides)


def build(model_class=AarenForPrediction, **overrides):
    torch.manual_seed(0)
    model = model_class(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def test_a_block_has_the_papers_parameters_one_vector_more_than_a_transformers():
    with torch.device("meta"):
        ours = AarenModel(AarenConfig.from_preset("aaren-block")).num_parameters()
        theirs = sum(p.numel() for p in nn.TransformerEncoderLayer(512, 8, 2048).parameters())
    assert (ours, theirs) == (3_152_896, 3_152_384) and ours - theirs == 512


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="aaren-block"):
        AarenConfig.from_preset("aaren-base")


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_a_stream_equals_the_parallel_form_at_every_step(norm_first):
    model, values = build(AarenModel, norm_first=norm_first), series(2, 40, 3)
    whole = model(values).last_hidden_state
    cache, steps = None, []
    for token in values.unbind(1):
        output = model.update(token, cache)
        cache = output.past_key_values
        steps.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 40


@torch.no_grad()
def test_forecasts_and_classes_follow_a_stream():
    values = series(2, 12, 3)
    for model, name in ((build(), "prediction_outputs"), (build(AarenForTimeSeriesClassification), "logits")):
        cache = model(values[:, :5], use_cache=True).past_key_values
        for end in range(6, 13):
            output = model.update(values[:, end - 1], cache)
            torch.testing.assert_close(output[name], model(values[:, :end])[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_state_is_a_handful_of_numbers_however_much_was_read():
    model, sizes = build(AarenModel), []
    for length in (3, 300):
        cache = model(series(1, length, 3), use_cache=True).past_key_values
        sizes.append([layer.recurrent_states[0].numel() for layer in cache.layers])
    assert sizes[0] == sizes[1] == [32 + 2 * 4] * 2


@torch.no_grad()
def test_a_cache_that_was_reset_begins_again():
    model, values = build(AarenModel), series(2, 6, 3)
    with torch.no_grad():
        for layer in model.layers:  # scores so low that a state of zeros would drown them
            layer.self_attn.q_proj.bias.fill_(40.0)
            layer.self_attn.k_proj.bias.fill_(-40.0)
    first = model(values, use_cache=True)
    first.past_key_values.reset()
    assert first.past_key_values.get_seq_length() == 0
    again = model(values, past_key_values=first.past_key_values)
    torch.testing.assert_close(again.last_hidden_state, first.last_hidden_state)


@torch.no_grad()
def test_later_steps_do_not_reach_earlier_ones():
    model, values = build(AarenModel), series(2, 10, 3)
    changed = values.clone()
    changed[:, 6] += 5
    before, after = (model(x).last_hidden_state for x in (values, changed))
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 7:] - after[:, 7:]).abs().amax() > 1e-3


@torch.no_grad()
def test_skipped_steps_behind_the_end_change_nothing():
    values = series(2, 9, 3)
    mask = torch.tensor([[1] * 6 + [0] * 3, [1] * 9])
    for model, name in ((build(), "prediction_outputs"), (build(AarenForTimeSeriesClassification), "logits")):
        whole = model(values, attention_mask=mask)[name]
        torch.testing.assert_close(whole[:1], model(values[:1, :6])[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_missing_values_are_not_read():
    model, values = build(), series(2, 10, 3)
    observed = torch.ones(2, 10, 3, dtype=torch.bool)
    observed[:, 4:7, 1] = False
    holes = values.masked_fill(~observed, math.nan)
    zeros = values.masked_fill(~observed, 0.0)
    ours = model(holes, past_observed_mask=observed).prediction_outputs
    torch.testing.assert_close(ours, model(zeros).prediction_outputs)


def test_the_loss_counts_what_was_observed():
    model, values, future = build(), series(2, 10, 3), series(2, 4, 3, seed=1)
    observed = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0)) > 0.3
    output = model(values, future_values=future.masked_fill(~observed, math.nan), future_observed_mask=observed)
    torch.testing.assert_close(output.loss, (output.prediction_outputs - future)[observed].square().mean())


@torch.no_grad()
def test_the_forecasting_pipeline_takes_it(tmp_path):
    build(AarenForPrediction).save_pretrained(tmp_path)
    assert isinstance(AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path), AarenForPrediction)
    forecast = pipeline("time-series-forecasting", model=str(tmp_path))(series(1, 30, 3)[0].numpy())
    assert forecast.shape == (4, 3)


def as_torch(model):
    """The weights of an `AarenModel` under torch's names."""
    state = {}
    for name, x in model.state_dict().items():
        name = name.replace("o_proj", "out_proj")
        for part in ("q_proj", "k_proj", "v_proj"):
            name = name.replace(f"self_attn.{part}.", "self_attn.in_proj_")
        state[name] = torch.cat((state[name], x)) if name in state and "in_proj" in name else x
    return state


ARGUMENTS = {"d_model": 32, "nhead": 4, "num_layers": 2, "dim_feedforward": 48}


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"norm_first": True, "activation": "gelu"}, {"norm_first": True, "hidden_act": "gelu"}),
        ({"bias": False, "layer_norm_eps": 1e-3}, {"use_bias": False, "layer_norm_eps": 1e-3}),
    ],
)
def test_every_argument_converts(options, fields):
    model = build(AarenModel, num_input_channels=0, **fields)
    converted = convert_checkpoint("aaren", as_torch(model), ARGUMENTS | options)
    x = series(2, 7, 32)
    torch.testing.assert_close(converted(inputs_embeds=x).last_hidden_state, model(inputs_embeds=x).last_hidden_state)


def test_a_transformers_weights_fit_but_for_the_query():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48), 2)
    with pytest.raises(ConversionError, match=r"2 tensors do not fit(.|\n)*missing: layers.0.query"):
        convert_checkpoint("aaren", encoder.state_dict(), ARGUMENTS)


def test_the_converter_names_unknown_arguments():
    with pytest.raises(ValueError, match="no argument heads; it has d_model"):
        convert_checkpoint("aaren", {}, {"heads": 4})


WRONG_CONFIGS = {
    "`num_attention_heads` must divide `hidden_size`": {"num_attention_heads": 5},
    "`hidden_size` must be even": {"hidden_size": 33, "num_attention_heads": 3},
    "`hidden_act` must be one of": {"hidden_act": "selu2"},
    "`dropout` must be": {"dropout": 1.0},
    "`prediction_length` must be at least 1": {"prediction_length": 0},
    "`num_input_channels` must be at least 0": {"num_input_channels": -1},
    "`channel_stds` must all be above 0": {"channel_means": [0.0] * 3, "channel_stds": [1.0, 0.0, 1.0]},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


WRONG_INPUTS = {
    "either past_values or inputs_embeds": {},
    "the input must be \\(batch, time, 3\\)": {"past_values": torch.zeros(2, 10, 4)},
    "none of them 0": {"past_values": torch.zeros(2, 0, 3)},
    "`attention_mask` must be": {"past_values": torch.zeros(2, 10, 3), "attention_mask": torch.ones(2, 9)},
    "`past_observed_mask` must be": {"past_values": torch.zeros(2, 10, 3), "past_observed_mask": torch.ones(2, 10)},
    "must be an AarenCache": {"past_values": torch.zeros(2, 10, 3), "past_key_values": DynamicCache()},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_inputs_are_named(message):
    with pytest.raises(ValueError, match=message):
        build(AarenModel)(**WRONG_INPUTS[message])


def test_wrong_tokens_and_targets_are_named():
    model = build()
    with pytest.raises(ValueError, match="a token must be"):
        model.update(torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="`future_values` must be"):
        model(series(2, 10, 3), future_values=torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="`num_input_channels` must be at least 1"):
        AarenForPrediction(tiny(num_input_channels=0))


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    num_attention_heads=st.sampled_from([1, 2, 8]),
    num_hidden_layers=st.integers(1, 2),
    hidden_act=st.sampled_from(["relu", "gelu"]),
    norm_first=st.booleans(),
    use_bias=st.booleans(),
    num_input_channels=st.integers(1, 3),
    length=st.integers(1, 70),
    cut=st.integers(0, 69),
)
def test_any_configuration_trains_and_streams_as_it_reads(length, cut, num_input_channels, **overrides):
    model = AarenForPrediction(tiny(num_input_channels=num_input_channels, **overrides)).eval()
    values, future = series(2, length + 1, num_input_channels), series(2, 4, num_input_channels, seed=1)
    output = model(values, future_values=future)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    cache = AarenCache(model.config)
    cut = cut % (length + 1)
    with torch.no_grad():
        if cut:
            model(values[:, :cut], past_key_values=cache)
        streamed = model(values[:, cut:], past_key_values=cache).prediction_outputs
    torch.testing.assert_close(streamed, output.prediction_outputs, atol=1e-5, rtol=1e-3)
