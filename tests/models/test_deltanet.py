"""DeltaNet: sizes, step sizes, state tracking, published and the authors' checkpoints, bad input, what every recurrent model must do."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.convert.deltanet import config as converted_config
from hf_ext.models.deltanet import DeltaNetCache, DeltaNetConfig, DeltaNetForCausalLM
from tests.models.recurrent_language_model import WINDOWED, RecurrentLanguageModelTests
from tests.tiny import tokens


class TestDeltaNet(RecurrentLanguageModelTests):
    slug = "deltanet"
    model_class = DeltaNetForCausalLM
    cache_class = DeltaNetCache
    MODELS = {
        "convolution": {},
        "plain": {"use_short_conv": False, "qk_activation": "elu", "qk_norm": "sum", "use_gate": False},
        "hybrid": {"num_hidden_layers": 4, "attn": WINDOWED},
    }


build, tiny = TestDeltaNet.build, TestDeltaNet.tiny


@pytest.mark.parametrize(
    ("preset", "count"),
    [("deltanet-parity", 529_856), ("deltanet-340m", 374_362_112), ("deltanet-1.3b", 1_365_677_056)],
)
def test_presets_have_the_published_sizes(preset, count):
    with torch.device("meta"):
        model = DeltaNetForCausalLM(DeltaNetConfig.from_preset(preset))
    assert model.num_parameters() == count


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match=r"deltanet-parity, deltanet-340m, deltanet-1\.3b"):
        DeltaNetConfig.from_preset("deltanet-3b")


def step_sizes(**overrides):
    model = build(**overrides)
    return model.model.layers[0].attn.step_size(2 * torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0)))


def test_step_sizes_lie_between_0_and_1_unless_negative_eigenvalues_are_allowed():
    narrow, wide = step_sizes(allow_neg_eigval=False), step_sizes(allow_neg_eigval=True)
    assert 0 < narrow.min() < 0.1 and 0.9 < narrow.max() < 1
    torch.testing.assert_close(wide, 2 * narrow)


def test_the_authors_three_settings_shape_the_step_size():
    plain = step_sizes(allow_neg_eigval=False)
    shaped = step_sizes(allow_neg_eigval=False, sigmoid_pre_scale=2.0, sigmoid_scale=1.5, sigmoid_shift=0.25)
    torch.testing.assert_close(shaped, 1.5 * (2 * plain.logit()).sigmoid() + 0.25)


@pytest.mark.parametrize(("allow_neg_eigval", "size"), [(False, 1.0), (True, 2.0)])
def test_without_beta_the_step_size_is_fixed(allow_neg_eigval, size):
    model = build(use_beta=False, allow_neg_eigval=allow_neg_eigval)
    assert "b_proj" not in str(model.state_dict().keys())
    assert (model.model.layers[0].attn.step_size(torch.randn(1, 3, 32)) == size).all()


def test_step_sizes_are_not_rounded_to_half_precision():
    model = build().bfloat16()
    assert model.model.layers[0].attn.step_size(torch.randn(1, 3, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_an_all_zero_key_at_a_padded_place_spreads_no_nan():
    model = build(use_short_conv=False, qk_activation="relu", qk_norm="sum", pad_token_id=0)
    with torch.no_grad():
        model.model.embeddings.weight[0] = 0
        for layer in model.model.layers:  # keys of real tokens sum to something
            layer.attn.q_proj.weight.abs_()
            layer.attn.k_proj.weight.abs_()
            layer.attn_norm.weight.fill_(1)
        model.model.embeddings.weight[1:].abs_()
    ids, mask = tokens(61, length=8), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    ids[mask == 0] = 0
    layer = model.model.layers[0].attn
    hidden = model.model.layers[0].attn_norm(model.model.embeddings(ids))
    assert layer(hidden, padding_mask=mask)[0].isfinite().all()


PUBLISHED = {  # config.json of fla-hub/delta_net-1.3B-100B and its like, with fields that have gone since
    "architectures": ["DeltaNetForCausalLM"], "attn": None, "attn_mode": "chunk", "conv_size": 4, "expand_k": 1, "expand_v": 1,
    "fuse_cross_entropy": True, "hidden_act": "swish", "hidden_ratio": 4, "hidden_size": 2048, "intermediate_size": None,
    "model_type": "delta_net", "norm_eps": 1e-06, "norm_first": False, "num_heads": 16, "num_hidden_layers": 24, "qk_activation": "silu",
    "qk_norm": "l2", "share_conv_kernel": True, "torch_dtype": "bfloat16", "use_beta": True, "use_gate": False, "use_output_norm": True,
    "use_short_conv": True, "vocab_size": 32000,
}  # fmt: skip


def test_a_published_configuration_loads_through_auto_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, DeltaNetConfig) and config.dtype == torch.bfloat16 and not config.allow_neg_eigval
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == 1_365_677_056


def test_the_authors_doubled_sigmoid_becomes_negative_eigenvalues():
    config = converted_config({"sigmoid_scale": 2.0})
    assert config.allow_neg_eigval and config.sigmoid_scale == 1


@pytest.mark.parametrize("arguments", [{"sigmoid_scale": 1.5}, {"sigmoid_scale": 2.0, "sigmoid_shift": -0.5}])
def test_the_authors_other_step_sizes_are_kept(arguments):
    config = converted_config(arguments)
    assert not config.allow_neg_eigval and {name: getattr(config, name) for name in arguments} == arguments


def test_the_authors_norms_inside_the_layers_convert():
    model = build()
    moved = {
        name.replace("attn_norm", "attn.norm").replace("mlp_norm", "mlp.norm"): x
        for name, x in model.state_dict().items()
    }
    arguments = tiny().to_diff_dict() | {"norm_first": True, "chunk_size": 64, "attn_mode": "fused_chunk"}
    converted = convert_checkpoint("deltanet", moved, arguments)
    torch.testing.assert_close(converted(tokens(61)).logits, model(tokens(61)).logits)


def test_the_converter_names_unknown_arguments_and_every_misfit():
    with pytest.raises(ValueError, match="no argument heads; it has"):
        convert_checkpoint("deltanet", {}, {"heads": 4})
    state = build().state_dict()
    del state["model.norm.weight"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(ConversionError, match=r"left over: extra(.|\n)*missing: model.norm.weight"):
        convert_checkpoint("deltanet", state, tiny().to_diff_dict())


WRONG_CONFIGS = {
    "expand_k": {"expand_k": 0.3},
    "expand_v": {"expand_v": 0.0},
    "hidden_act": {"hidden_act": "gelu"},
    "qk_activation": {"qk_activation": "tanh"},
    "qk_norm": {"qk_norm": "max"},
    "sigmoid_scale": {"sigmoid_scale": math.inf},
    "attnres_block_size": {"attnres_block_size": 2},
    "attn_mode": {"attn_mode": "fused_chunk"},
    "norm_eps": {"norm_eps": 0.0},
    "attn names layers": {"attn": {"layers": [7], "num_heads": 2}},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    num_heads=st.sampled_from([1, 2, 4]),
    expand_k=st.sampled_from([0.5, 1.0]),
    expand_v=st.sampled_from([1.0, 2.0]),
    use_short_conv=st.booleans(),
    use_gate=st.booleans(),
    use_beta=st.booleans(),
    allow_neg_eigval=st.booleans(),
    qk=st.sampled_from([("silu", "l2"), ("relu", "l2"), ("elu", "sum"), ("elu", "l2"), ("identity", "l2")]),
    length=st.integers(1, 70),
)
def test_any_configuration_trains_and_decodes_as_it_reads(qk, length, **overrides):
    activation, norm = qk
    model = DeltaNetForCausalLM(tiny(num_hidden_layers=1, qk_activation=activation, qk_norm=norm, **overrides)).eval()
    ids = tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    assert math.isfinite(output.loss.item())
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-4, rtol=1e-3)
