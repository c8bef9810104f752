"""Next-ViT: sizes, folding, the backbone, and what it refuses."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoBackbone, AutoImageProcessor

from hf_ext.convert import convert_checkpoint
from hf_ext.models.nextvit import (
    NextViTBackbone,
    NextViTConfig,
    NextViTForImageClassification,
    NextViTImageProcessor,
    NextViTModel,
)
from hf_ext.models.nextvit.modeling_nextvit import NextViTAttention
from tests.models.vision import (
    count_parameters,
    image,
    onnx_logits,
    subject,
    tiny,
    train_under_deformable_detr,
    train_under_upernet,
    used,
)
from tests.passport import CHECKS
from tests.tiny import TINY

PARAMETERS = {"nextvit-small": 31_763_368, "nextvit-base": 44_818_856, "nextvit-large": 57_874_344}
FORMS = ["AutoModel", "AutoModelForImageClassification", "AutoBackbone"]


def config(**overrides) -> NextViTConfig:
    fields = TINY["nextvit"]()[0].to_diff_dict()
    fields.pop("out_indices")  # follows from out_features
    return NextViTConfig(**(fields | overrides))


@pytest.mark.parametrize("name", NextViTConfig.PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert count_parameters(NextViTForImageClassification, NextViTConfig.from_preset(name)) == PARAMETERS[name]


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="nextvit-small, nextvit-base, nextvit-large"):
        NextViTConfig.from_preset("nextvit-tiny")


@torch.no_grad()
@pytest.mark.parametrize("auto_class", FORMS)
def test_fusing_changes_no_output(auto_class):
    model = tiny("nextvit", auto_class)
    fused = deepcopy(model).fuse()
    for ours, expected in zip(fused(image(48, 64)).to_tuple(), model(image(48, 64)).to_tuple()):
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, expected))):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_fusing_leaves_only_the_norm_that_ends_the_network():
    model = tiny("nextvit", "AutoModelForImageClassification").fuse()
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms == ["nextvit.encoder.stages.3.norm"]


@torch.no_grad()
def test_the_fused_form_saves_and_loads(tmp_path):
    model = tiny("nextvit", "AutoModelForImageClassification").fuse()
    model.save_pretrained(tmp_path)
    loaded = NextViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.fused
    torch.testing.assert_close(loaded(image(48, 48)).logits, model(image(48, 48)).logits)


@torch.no_grad()
def test_the_fused_form_runs_in_onnxruntime():
    model = tiny("nextvit", "AutoModelForImageClassification").fuse()
    torch.testing.assert_close(onnx_logits(model, image(48, 48)), model(image(48, 48)).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_authors_segmenter_with_extra_norms_fuses():
    model = used(NextViTBackbone(config(extra_norms=True))).eval()
    expected = model(image(48, 48)).feature_maps
    for ours, theirs in zip(model.fuse()(image(48, 48)).feature_maps, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keys_are_means_of_consecutive_tokens_and_the_remainder_is_dropped():
    attention = NextViTAttention(config(), width=32, sr_ratio=2).eval()
    tokens = image(11, 32)[0, :1]  # (1, 11, 32)
    reduced = attention.reduce(tokens) * (1 + attention.norm.eps) ** 0.5
    torch.testing.assert_close(reduced, torch.stack([tokens[:, :4].mean(1), tokens[:, 4:8].mean(1)], 1))


@torch.no_grad()
def test_without_reduction_eager_weights_sum_to_one_over_all_tokens():
    model = tiny("nextvit", "AutoModel")
    model.set_attn_implementation("eager")
    attentions = model(image(64, 32), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 2, 32, 2), (1, 2, 8, 2), (1, 2, 2, 2)]
    assert all(torch.allclose(weights.sum(-1), torch.ones(())) for weights in attentions)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    height=st.integers(25, 70), width=st.integers(25, 70), batch=st.integers(1, 2), mix=st.sampled_from([0.4, 0.5, 0.7])
)
@torch.no_grad()
def test_any_size_gives_maps_of_the_rounded_up_strides(height, width, batch, mix):
    wide = {"out_sizes": [16, 96, 96, 96], "mix_block_ratio": mix}
    maps = NextViTBackbone(config(**wide)).eval()(image(height, width, batch)).feature_maps
    for stride, channels, feature_map in zip((4, 8, 16, 32), (16, 96, 96, 96), maps):
        assert feature_map.shape == (batch, channels, -(-height // stride), -(-width // stride))
        assert feature_map.isfinite().all()


@torch.no_grad()
def test_a_backbone_loads_a_classifiers_weights(tmp_path):
    classifier = tiny("nextvit", "AutoModelForImageClassification")
    classifier.save_pretrained(tmp_path)
    backbone, info = NextViTBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    last = classifier.nextvit.encoder.stages[3].norm(backbone(image(48, 48)).feature_maps[-1])
    torch.testing.assert_close(last, classifier.nextvit(image(48, 48)).last_hidden_state)


def test_with_extra_norms_the_last_one_is_the_classifiers(tmp_path):
    classifier = tiny("nextvit", "AutoModelForImageClassification")
    classifier.save_pretrained(tmp_path)
    backbone = NextViTBackbone.from_pretrained(tmp_path, extra_norms=True)
    assert torch.equal(backbone.encoder.stages[3].norm.weight, classifier.nextvit.encoder.stages[3].norm.weight)
    assert torch.equal(backbone.encoder.stages[0].norm.weight, torch.ones(16))


def test_auto_backbone_returns_the_maps_asked_for():
    backbone = AutoBackbone.from_config(config(out_features=["stem", "stage3"])).eval()
    assert type(backbone) is NextViTBackbone
    assert backbone.channels == [16, 64]
    assert [tuple(x.shape) for x in backbone(image(48, 48)).feature_maps] == [(1, 16, 12, 12), (1, 64, 3, 3)]


@pytest.mark.parametrize(
    "check", ["save_and_load", "gradients", "gradient_checkpointing", "bfloat16", "export", "lora"]
)
def test_the_backbone_passes_the_passport_too(check):
    CHECKS[check](subject("nextvit", "AutoBackbone"))


def test_upstreams_segmenter_trains_on_it():
    train_under_upernet(config())


def test_upstreams_detector_trains_on_it():
    train_under_deformable_detr(config())


def test_conversion_keeps_the_norms_of_the_authors_segmenters():
    ours = used(NextViTBackbone(NextViTConfig(depths=[1, 1, 5, 1], extra_norms=True)))
    names = {f"stages.{s}.layers.{b}.": f"features.{s if s < 2 else s + b + 4 * (s == 3)}." for s, b in blocks()}
    source = {authors_name(name, names): tensor for name, tensor in ours.state_dict().items()}
    arguments = {"stem_chs": [64, 32, 64], "depths": [1, 1, 5, 1], "path_dropout": 0.2, "features_only": True}
    unused = {"extra_norm_list.3.weight": torch.ones(1024)}
    converted = convert_checkpoint("nextvit", source | unused, arguments)
    assert converted.config.extra_norms
    assert all(torch.equal(converted.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


def blocks():
    return [(0, 0), (1, 0), *((2, block) for block in range(5)), (3, 0)]


def authors_name(name: str, block_names: dict[str, str]) -> str:
    name = name.removeprefix("encoder.").replace("stages.3.norm.", "norm.")
    for stage in range(3):
        name = name.replace(f"stages.{stage}.norm.", f"extra_norm_list.{stage}.")
    for ours, theirs in block_names.items():
        name = name.replace(ours, theirs)
    for ours, theirs in {
        "patch_embedding": "patch_embed",
        "convolutional_attention.conv.conv": "mhca.group_conv3x3",
        "convolutional_attention.conv.norm": "mhca.norm",
        "convolutional_attention": "mhca",
        "mlp.fc": "mlp.conv",
        "norm_before": "norm1",
        "norm_after": "norm2",
        "attention.o_proj": "e_mhsa.proj",
        "attention.q_proj": "e_mhsa.q",
        "attention.k_proj": "e_mhsa.k",
        "attention.v_proj": "e_mhsa.v",
        "attention.norm": "e_mhsa.norm",
    }.items():
        name = name.replace(ours, theirs)
    return name


def test_conversion_lists_the_arguments_there_are():
    with pytest.raises(ValueError, match=r"no arguments .'depth'.; it has stem_chs, depths"):
        convert_checkpoint("nextvit", {}, {"stem_chs": [64, 32, 64], "depth": [3, 4, 10, 3], "path_dropout": 0.1})
    with pytest.raises(ValueError, match="needs the arguments depths, path_dropout"):
        convert_checkpoint("nextvit", {}, {"stem_chs": [64, 32, 64]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 2, 6, 1]}, "multiple of 5, not 6"),
        ({"depths": [1, 2, 5]}, "4 positive numbers"),
        ({"out_sizes": [32, 64, 64, 64]}, "must equal `hidden_sizes\\[0\\]`"),
        ({"strides": [1, 2, 2, 4]}, "ones and twos"),
        ({"hidden_sizes": [24, 32, 32, 32], "out_sizes": [24, 64, 64, 64]}, "multiples of `head_dim` \\(16\\)"),
        ({"mix_block_ratio": 0.9}, "64 channels for self-attention and 0"),
        ({"drop_path_rate": 1.0}, "\\[0, 1\\)"),
        ({"head_dim": 0}, "`head_dim` must be positive"),
        ({"out_features": ["stage5"]}, "stage_names"),
    ],
)
def test_impossible_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "not nothing"),
        (torch.zeros(3, 48, 48), "shape \\(3, 48, 48\\)"),
        (torch.zeros(1, 1, 48, 48), "\\(batch, 3, height, width\\)"),
        (torch.zeros(1, 3, 0, 48), "holds no pixels"),
        (torch.zeros(1, 3, 1, 1), "too small"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        NextViTModel(config()).eval()(pixel_values)


def test_the_processor_prepares_a_photograph_as_the_authors_do(tmp_path):
    TINY["nextvit"]()[0].save_pretrained(tmp_path)
    NextViTImageProcessor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is NextViTImageProcessor
    photograph = np.full((300, 500, 3), 128, dtype=np.uint8)
    pixel_values = processor(photograph, return_tensors="pt")["pixel_values"]
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values[0, :, 100, 100], expected, atol=1e-5, rtol=1e-5)
