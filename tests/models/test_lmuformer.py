"""LMUFormer: the paper's sizes, streams that equal the whole, spikes, early decisions, features, conversion, bad input."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, DynamicCache, pipeline

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.layers.legendre_memory import LegendreMemoryCell
from hf_ext.layers.streaming import NormActivation, SpikingNeurons, StreamCache
from hf_ext.models.lmuformer import (
    LMUFormerConfig,
    LMUFormerFeatureExtractor,
    LMUFormerForAudioClassification,
    LMUFormerModel,
)
from tests.models.vision import count_parameters, used
from tests.tiny import TINY, series

SPIKES = {"spiking": True, "membrane_shortcut": False}
MEMBRANES = {"spiking": True}
ATTENTION = {"spiking": True, "mixer": "attention"}
STREAMED = {"ReLU": {}, "spikes": SPIKES, "membranes": MEMBRANES}
ALL = {**STREAMED, "attention": ATTENTION}


def tiny(**overrides):
    return LMUFormerConfig(**TINY["lmuformer"]()[0].to_diff_dict() | overrides)


def build(model_class=LMUFormerForAudioClassification, **overrides):
    """With weights so large, and norms so used, that spiking neurons do fire."""
    torch.manual_seed(0)
    model = used(model_class(tiny(**overrides)).eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        for module in model.modules():
            if isinstance(module, NormActivation) and isinstance(module.activation, SpikingNeurons):
                module.norm.weight.mul_(3)
                module.norm.bias.add_(0.5)
    return model.double()  # no membrane is then within rounding of its threshold


def frames(batch=2, length=20, seed=0):
    return series(batch, length, 12, seed).double()


@torch.no_grad()
def stream(model, features, sizes):
    """The outputs for pieces of these sizes, the last of them included."""
    cache, outputs, start = StreamCache(), [], 0
    for size in sizes:
        last = start + size >= features.shape[1]
        outputs.append(model(features[:, start : start + size], past_key_values=cache, is_last=last))
        start += size
    return outputs


PRESETS = {
    "lmuformer": 1_621_796,
    "spiking-lmuformer-spikes": 1_689_382,
    "spiking-lmuformer": 1_689_894,
    "spiking-attention": 1_689_379,
}


@pytest.mark.parametrize("name", LMUFormerConfig.PRESETS)
def test_presets_have_the_references_parameters(name):
    assert count_parameters(LMUFormerForAudioClassification, LMUFormerConfig.from_preset(name)) == PRESETS[name]


def test_presets_know_the_words():
    labels = LMUFormerConfig.from_preset("lmuformer").id2label
    assert (len(labels), labels[0], labels[34]) == (35, "backward", "one")


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="spiking-lmuformer"):
        LMUFormerConfig.from_preset("lmuformer-large")


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 12], [19, 1]], ids=str)
def test_a_stream_equals_the_whole_at_every_frame(kind, sizes):
    model, features = build(**STREAMED[kind]), frames()
    with torch.no_grad():
        whole = model(features)
    outputs = stream(model, features, sizes)
    torch.testing.assert_close(torch.cat([output.frame_logits for output in outputs], 1), whole.frame_logits)
    torch.testing.assert_close(outputs[-1].logits, whole.logits)


@pytest.mark.parametrize("kind", STREAMED)
def test_hidden_states_come_five_frames_late_and_the_rest_at_the_end(kind):
    outputs = stream(build(LMUFormerModel, **STREAMED[kind]), frames(), [1] * 20)
    assert [output.last_hidden_state.shape[1] for output in outputs] == [0] * 5 + [1] * 14 + [6]


@pytest.mark.parametrize("kind", STREAMED)
def test_a_stream_may_end_without_further_frames(kind):
    model, features = build(**STREAMED[kind]), frames()
    outputs = stream(model, features, [8, 11])
    with torch.no_grad():
        cache = outputs[-1].past_key_values
        model(features[:, 19:], past_key_values=cache)
        last = model(features[:, :0], past_key_values=cache, is_last=True)
        torch.testing.assert_close(last.logits, model(features).logits)


@pytest.mark.parametrize("kind", STREAMED)
@torch.no_grad()
def test_later_frames_reach_five_frames_back_and_no_further(kind):
    model, features = build(LMUFormerModel, **STREAMED[kind]), frames()
    changed = features.clone()
    changed[:, 12] += 30
    before, after = (model(x).last_hidden_state for x in (features, changed))
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7:], after[:, 7:])


@torch.no_grad()
def test_calls_do_not_remember_each_other():
    model, features = build(**MEMBRANES), frames()
    first = model(features).logits
    model(frames(seed=1))
    assert torch.equal(model(features).logits, first)


@torch.no_grad()
def test_a_stream_that_was_reset_begins_again():
    model, features = build(**MEMBRANES), frames()
    first = model(features, use_cache=True, is_last=True)
    first.past_key_values.reset()
    again = model(features, past_key_values=first.past_key_values, is_last=True)
    assert torch.equal(again.logits, first.logits)


@torch.no_grad()
def test_the_state_does_not_grow():
    model = build(**MEMBRANES)
    sizes = []
    for length in (12, 120):
        cache = model(frames(length=length), use_cache=True).past_key_values
        sizes.append(sum(state.numel() for state in cache.states.values()))
    assert sizes[0] == sizes[1]


def test_the_memory_stays_exact_in_half_precision(tmp_path):
    model = LMUFormerModel(tiny())
    model.save_pretrained(tmp_path)
    expected = model.layers[0].mixer.cell.memory.A
    for half in (model.bfloat16(), LMUFormerModel.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert half.dtype == torch.bfloat16 and torch.equal(half.layers[0].mixer.cell.memory.A, expected)


@torch.no_grad()
def test_any_length_may_be_read_also_beyond_that_of_training():
    model = build()
    torch.testing.assert_close(stream(model, frames(length=50), [1] * 50)[-1].logits, model(frames(length=50)).logits)


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_gets_a_gradient(kind):
    model = build(**ALL[kind]).train()
    model(frames(), labels=torch.tensor([0, 3])).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "ReLU"])
@torch.no_grad()
def test_neurons_of_every_layer_fire_now_and_then(kind):
    model, spikes = build(**ALL[kind]), {}
    for name, module in model.named_modules():
        if isinstance(module, SpikingNeurons):
            module.register_forward_hook(lambda _, inputs, output, name=name: spikes.update({name: output}))
    model(frames())
    assert spikes and all(set(output.unique().tolist()) == {0.0, 1.0} for output in spikes.values())


@pytest.mark.parametrize("kind", [SPIKES, MEMBRANES, ATTENTION], ids=["spikes", "membranes", "attention"])
@torch.no_grad()
def test_spiking_models_compile_and_export(kind):
    """The passport's model has no neurons."""
    model, features = build(**kind), frames(length=8)
    expected = model(features).logits
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(features).logits, expected)
    program = torch.export.export(model, (), {"input_features": features})
    torch.testing.assert_close(program.module()(input_features=features).logits, expected)


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_a_batch_is_as_good_as_its_items(kind):
    model, features = build(**ALL[kind]), frames()
    torch.testing.assert_close(model(features).logits, torch.cat([model(x[None]).logits for x in features]))


@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_models_save_and_load(kind, tmp_path):
    model = build(**ALL[kind]).float()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(frames().float()).logits, model(frames().float()).logits)


@torch.no_grad()
def test_soft_labels_give_the_papers_loss():
    model, labels = build(), torch.rand(2, 4).double()
    output = model(frames(), labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


def confident():
    """A classifier of one thing: that it is class 2."""
    model = build()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 6.0, 0.0]))
    return model


def test_a_clear_stream_is_read_no_further_than_needed():
    decision = confident().classify_stream(frames(batch=1, length=40).split(2, 1), confidence=0.9)
    assert (decision.label, decision.frames) == (2, 6) and decision.confidence > 0.9


def test_a_stream_is_read_as_far_as_asked():
    decision = confident().classify_stream(frames(batch=1, length=40).split(2, 1), confidence=0.9, min_frames=20)
    assert decision.frames == 20


def test_an_unclear_stream_is_read_to_its_end():
    model, features = build(), frames(batch=1)
    with torch.no_grad():
        model.classifier.weight.mul_(0.01)
    decision = model.classify_stream(features.split(3, 1), confidence=1.0)
    with torch.no_grad():
        confidence, label = model(features).logits[0].softmax(-1).max(-1)
    assert (decision.label, decision.frames) == (label, 20)
    assert decision.confidence == pytest.approx(confidence.item())


def test_a_decision_needs_a_stream_of_one():
    model = build()
    with pytest.raises(ValueError, match="no piece"):
        model.classify_stream([])
    with pytest.raises(ValueError, match="a piece must be"):
        model.classify_stream([frames()])
    with pytest.raises(ValueError, match="`confidence` must be"):
        model.classify_stream([frames(batch=1)], confidence=0)


def clip(seconds=1.0, seed=0):
    return np.random.default_rng(seed).normal(scale=0.1, size=int(16_000 * seconds)).astype(np.float32)


def test_a_second_of_sound_is_98_frames_and_zeros_behind_them():
    features = LMUFormerFeatureExtractor()(clip(), sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 128, 128)
    zero = 6.845978 / (2 * 5.5654526)
    torch.testing.assert_close(features[0, 98:], torch.full((30, 128), zero))
    assert (features[0, :98] != zero).all()


def test_a_constant_offset_is_not_heard():
    extract = LMUFormerFeatureExtractor()
    a, b = (extract(x, sampling_rate=16_000, return_tensors="pt").input_features for x in (clip(), clip() + 0.5))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sound", [np.zeros(399), np.full(16_000, np.nan)], ids=["short", "not a number"])
def test_sounds_that_cannot_be_heard_are_refused(sound):
    with pytest.raises(ValueError, match="a waveform"):
        LMUFormerFeatureExtractor()(sound, sampling_rate=16_000)


def test_the_audio_pipeline_takes_it(tmp_path):
    torch.manual_seed(0)
    LMUFormerForAudioClassification(LMUFormerConfig.from_preset("lmuformer", hidden_size=32)).save_pretrained(tmp_path)
    LMUFormerFeatureExtractor().save_pretrained(tmp_path)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), LMUFormerFeatureExtractor)
    answers = pipeline("audio-classification", model=str(tmp_path))(clip(), top_k=3)
    assert len(answers) == 3 and answers[0]["label"] in LMUFormerConfig.from_preset("lmuformer").label2id


RENAMED = (
    (r"^model\.embeddings\.position_conv", "patch_embed.rpe_conv"),
    (r"^model\.embeddings\.layers\.(\d)\.conv", r"patch_embed.proj_conv\1"),
    (r"^model\.embeddings\.layers\.(\d)\.norm\.norm", r"patch_embed.proj_bn\1"),
    (r"(proj_(conv|bn))0", r"\1"),
    (r"^model\.layers", "block"),
    (r"^model\.norm\.norm", "head_bn"),
    (r"mixer\.input_norm\.norm", "attn.pre_bn"),
    (r"mixer\.norm\.norm", "attn.proj_bn"),
    (r"mixer\.o_proj", "attn.proj_conv"),
    (r"mixer\.(\w)_proj", r"attn.\1_conv"),
    (r"mixer\.(\w)_norm\.norm", r"attn.\1_bn"),
    (r"mlp\.fc(\d)", r"mlp.fc\1_conv"),
    (r"mlp\.norm(\d)\.norm", r"mlp.fc\1_bn"),
    ("^classifier", "head"),
)


def as_reference(model):
    """The weights of the baseline with attention, which no golden case has, under the reference's names."""
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RENAMED:
            name = re.sub(ours, theirs, name)
        state[name] = tensor.unsqueeze(-1) if "_conv" in name and tensor.ndim == 2 else tensor
    return state


ARGUMENTS = {
    "model": "attn_ms_conv1d",
    "embed_dims": 32,
    "depths": 2,
    "num_classes": 4,
    "num_heads": 4,
    "mlp_ratios": 1.5,
    "in_channels": 12,
}


@torch.no_grad()
def test_the_baseline_with_attention_converts():
    model = build(**ATTENTION)
    converted = convert_checkpoint("lmuformer", as_reference(model), ARGUMENTS).double()
    assert torch.equal(converted(frames()).logits, model(frames()).logits)


def test_the_converter_lists_what_does_not_fit():
    state = as_reference(build(**ATTENTION))
    state["surplus"] = state.pop("head.bias")
    with pytest.raises(ConversionError, match=r"left over: surplus(.|\n)*missing: classifier.bias"):
        convert_checkpoint("lmuformer", state, ARGUMENTS)


WRONG_ARGUMENTS = {
    "no argument heads": {"heads": 4},
    "`model` must be one of": {"model": "lmu"},
    "`embed_dims` of slmu_rnn_conv1d must be 256": {"model": "slmu_rnn_conv1d", "embed_dims": 128},
    "no argument dropout": {"memory_size": 4, "dropout": 0.1},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("lmuformer", {}, WRONG_ARGUMENTS[message])


@pytest.mark.parametrize("neurons", [None, SpikingNeurons])
@torch.no_grad()
def test_a_cell_of_its_own_streams_too(neurons):
    torch.manual_seed(0)
    cell = LegendreMemoryCell(5, 7, 9, theta=30, neurons=neurons).double().eval()
    x, cache = 5 * torch.rand(2, 40, 5).double(), StreamCache()
    whole, last = cell(x)
    parts, states = zip(*(cell(part, cache) for part in x.split((1, 3, 36), 1)))
    torch.testing.assert_close((torch.cat(parts, 1), states[-1]), (whole, last))


WRONG_CONFIGS = {
    "`num_attention_heads` must divide": {"num_attention_heads": 5},
    "`mixer` must be one of lmu, attention": {"mixer": "conv"},
    "`mixer` = 'attention' is of spikes": {"mixer": "attention"},
    "`theta` must be at least 1": {"theta": 0},
    "`tau` must be at least 1": {"tau": 0.5},
    "`threshold` must be above 0": {"threshold": 0.0},
    "`max_length` must be at least 1": {"max_length": 0},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


def closed():
    cache = StreamCache()
    cache.closed = True
    return cache


WRONG_INPUTS = {
    "must be \\(batch, time, 12\\)": {"input_features": torch.zeros(2, 20, 13)},
    "no frames, and there is no stream": {"input_features": torch.zeros(2, 0, 12), "is_last": True},
    "possible only to end a stream": {"input_features": torch.zeros(2, 0, 12), "use_cache": True},
    "must be a StreamCache": {"input_features": torch.zeros(2, 20, 12), "past_key_values": DynamicCache()},
    "has ended": {"input_features": torch.zeros(2, 20, 12), "past_key_values": closed()},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_inputs_are_named(message):
    with pytest.raises(ValueError, match=message):
        build(LMUFormerModel)(**WRONG_INPUTS[message])


def test_attention_reads_no_stream():
    with pytest.raises(ValueError, match="cannot read a stream"):
        build(**ATTENTION)(frames(), use_cache=True)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(list(STREAMED)),
    num_mel_bins=st.integers(1, 5),
    memory_size=st.integers(1, 9),
    num_hidden_layers=st.integers(1, 2),
    theta=st.integers(1, 60),
    length=st.integers(1, 30),
    cut=st.integers(1, 29),
)
def test_any_configuration_streams_as_it_reads(kind, length, cut, num_mel_bins, **sizes):
    model = build(hidden_size=8, num_mel_bins=num_mel_bins, **sizes, **STREAMED[kind])
    features = series(2, length, num_mel_bins).double()
    pieces = [cut, length - cut] if cut < length else [length]
    with torch.no_grad():
        whole = model(features)
    torch.testing.assert_close(stream(model, features, pieces)[-1].logits, whole.logits)
