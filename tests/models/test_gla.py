"""The Gated Linear Attention Transformer: sizes, generation, padding, packing, hybrids, published checkpoints, bad input."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.models.gla import GLACache, GLAConfig, GLAForCausalLM
from tests.models.recurrent_language_model import WINDOWED, RecurrentLanguageModelTests
from tests.tiny import tokens


class TestGLA(RecurrentLanguageModelTests):
    slug = "gla"
    model_class = GLAForCausalLM
    cache_class = GLACache
    MODELS = {
        "convolution": {},
        "plain": {"use_short_conv": False, "num_kv_heads": None},
        "hybrid": {"num_hidden_layers": 4, "attn": WINDOWED},
    }


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


def test_the_converter_names_unknown_arguments_and_every_misfit():
    with pytest.raises(ValueError, match="no argument heads; it has"):
        convert_checkpoint("gla", {}, {"heads": 4})
    state = TestGLA.build().state_dict()
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
    assert f"model.layers.0.attn.{name}.weight" in GLAForCausalLM(TestGLA.tiny(**settings)).state_dict()


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
        TestGLA.tiny(**WRONG_CONFIGS[message])


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
        TestGLA.tiny(num_heads=num_heads, num_kv_heads=1 if shared else None, num_hidden_layers=1, **overrides)
    ).eval()
    ids = tokens(61, length=length + 1)
    output = model(ids, labels=ids, use_cache=False)
    assert math.isfinite(output.loss.item())
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, output.logits[:, -1:], atol=1e-5, rtol=1e-3)
