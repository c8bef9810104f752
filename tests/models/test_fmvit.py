"""FMViT: sizes, re-parameterization, the frequencies of its attention, the backbone, and what it refuses."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoBackbone, AutoImageProcessor

from hf_ext.convert import convert_checkpoint
from hf_ext.models.fmvit import (
    FMViTBackbone,
    FMViTConfig,
    FMViTForImageClassification,
    FMViTImageProcessor,
    FMViTModel,
)
from hf_ext.models.fmvit.modeling_fmvit import FMViTAttention, FMViTMultiGroupConv
from tests.goldens import FOLDER, call_arguments, read_case
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


def config(**overrides) -> FMViTConfig:
    fields = TINY["fmvit"]()[0].to_diff_dict()
    fields.pop("out_indices")  # follows from out_features
    return FMViTConfig(**(fields | overrides))


def test_the_default_has_the_number_of_parameters_of_the_definition():
    assert count_parameters(FMViTForImageClassification, FMViTConfig.from_preset("fmvit")) == 14_705_640


def test_the_fused_form_has_the_number_of_parameters_of_the_definition_less_the_norms_that_fold_too():
    folded_norms = sum(
        module.num_features
        for name, module in FMViTForImageClassification(FMViTConfig.from_preset("fmvit")).named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and ("stem" in name or "patch_embedding" in name or ".projection." in name)
    )
    norms_before_attention = 2 * (160 + 288 + 480)
    fused = count_parameters(FMViTForImageClassification, FMViTConfig.from_preset("fmvit", fused=True))
    assert fused == 12_323_720 - folded_norms - norms_before_attention


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel", "groups", "point_groups", "identity"),
    [(3, (2, 8), 2, True), (1, (1, 4), None, False), (1, (2,), 4, True)],
)
def test_parallel_branches_fuse_into_one_convolution(kernel, groups, point_groups, identity):
    branches = used(FMViTMultiGroupConv(8, 8, kernel, groups, 1e-5, point_groups, identity)).eval()
    for branch in branches.branches:
        branch.fuse()
    x = image(6, 5, channels=8)
    fused = branches.fuse()
    assert isinstance(fused, nn.Conv2d) and fused.groups == min(groups)
    torch.testing.assert_close(fused(x), branches(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageClassification", "AutoBackbone"])
def test_fusing_changes_no_output(auto_class):
    model = tiny("fmvit", auto_class)
    fused = deepcopy(model).fuse()
    for ours, expected in zip(fused(image(40, 64)).to_tuple(), model(image(40, 64)).to_tuple()):
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, expected))):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("folder", sorted((FOLDER / "fmvit").iterdir()), ids=lambda folder: folder.name)
def test_the_fused_form_meets_the_cases_too(folder):
    case = read_case(folder)
    model = convert_checkpoint("fmvit", case["state_dict"], case["arguments"]).fuse()
    output = model(**call_arguments(case))
    expected = case["outputs"]
    ours = {"logits": output.logits} if "logits" in expected else dict(zip(sorted(expected), output.feature_maps))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=case["atol"], rtol=case["rtol"])


def test_fusing_leaves_only_the_norm_that_ends_the_network():
    model = tiny("fmvit", "AutoModelForImageClassification").fuse()
    assert [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["fmvit.norm"]


@torch.no_grad()
def test_the_fused_form_saves_and_loads(tmp_path):
    model = tiny("fmvit", "AutoModelForImageClassification").fuse()
    model.save_pretrained(tmp_path)
    loaded = FMViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.fused
    torch.testing.assert_close(loaded(image(40, 40)).logits, model(image(40, 40)).logits)


@torch.no_grad()
def test_the_fused_form_runs_in_onnxruntime():
    model = tiny("fmvit", "AutoModelForImageClassification").fuse()
    torch.testing.assert_close(onnx_logits(model, image(40, 40)), model(image(40, 40)).logits, atol=1e-5, rtol=1e-4)


def test_a_model_in_training_mode_is_not_fused():
    with pytest.raises(ValueError, match="eval"):
        tiny("fmvit", "AutoModel").train().fuse()


@torch.no_grad()
def test_each_part_of_the_heads_looks_at_the_map_pooled_by_its_factor():
    model = FMViTModel(config(pool_ratios=[[8], [2, 4], [1, 2], [1, 64]], out_sizes=[16, 64, 64, 64])).eval()
    model.set_attn_implementation("eager")
    attentions = model(image(96, 64), output_attentions=True).attentions
    keys = [weights.shape[-1] for weights in attentions]
    assert keys == [6 * 4, 3 * 2, 6 * 4, 3 * 2, 3 * 2, 1]


def test_factors_without_a_head_are_left_out():
    attention = FMViTAttention(config(pool_ratios=[[8], [2, 4, 8], [1], [1]]), stage=1, width=32)
    assert [pool.kernel_size for pool in attention.pools] == [4, 8] and attention.parts == (16, 16)


def test_the_norms_of_keys_see_the_map_that_their_channels_are_used_on():
    attention = FMViTAttention(config(pool_ratios=[[8], [1, 4], [1], [1]]), stage=1, width=32).train()
    attention.k_proj.norms.apply(lambda m: setattr(m, "momentum", 1.0))
    maps = image(8, 8, batch=4, channels=32)
    attention(maps)
    conv = attention.k_proj.convs[0]
    coarse = conv(nn.functional.avg_pool2d(maps, 4))[:, 16:]
    torch.testing.assert_close(attention.k_proj.norms[0][1].running_var, coarse.transpose(0, 1).flatten(1).var(1))


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    groups=st.sampled_from([[1], [2, 4], [1, 2, 8]]),
    ratios=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
@torch.no_grad()
def test_any_size_and_any_factors_give_maps_of_the_rounded_up_strides(height, width, groups, ratios):
    model = FMViTBackbone(config(mlp_groups=groups, pool_ratios=[ratios] * 4)).eval()
    expected = model(image(height, width)).feature_maps
    for stride, feature_map, fused in zip((4, 8, 16, 32), expected, model.fuse()(image(height, width)).feature_maps):
        assert feature_map.shape[2:] == (-(-height // stride), -(-width // stride))
        torch.testing.assert_close(fused, feature_map, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_backbone_loads_a_classifiers_weights(tmp_path):
    classifier = tiny("fmvit", "AutoModelForImageClassification")
    classifier.save_pretrained(tmp_path)
    backbone, info = FMViTBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    last = classifier.fmvit.norm(backbone(image(40, 40)).feature_maps[-1])
    torch.testing.assert_close(last, classifier.fmvit(image(40, 40)).last_hidden_state)


def test_auto_backbone_returns_the_maps_asked_for():
    backbone = AutoBackbone.from_config(config(out_features=["stem", "stage3"])).eval()
    assert type(backbone) is FMViTBackbone and backbone.channels == [16, 64]
    assert [tuple(x.shape) for x in backbone(image(48, 48)).feature_maps] == [(1, 16, 12, 12), (1, 64, 3, 3)]


@pytest.mark.parametrize(
    "check", ["save_and_load", "gradients", "gradient_checkpointing", "bfloat16", "export", "lora"]
)
def test_the_backbone_passes_the_passport_too(check):
    CHECKS[check](subject("fmvit", "AutoBackbone"))


def test_upstreams_segmenter_trains_on_it():
    train_under_upernet(config())


def test_upstreams_detector_trains_on_it():
    train_under_deformable_detr(config())


def test_conversion_lists_the_arguments_there_are():
    with pytest.raises(ValueError, match=r"no arguments \['depth'\]; it has num_channels, stem_sizes"):
        convert_checkpoint("fmvit", {}, {"depth": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 2, 6]}, "4 positive numbers"),
        ({"out_sizes": [32, 64, 64, 64]}, r"must equal `hidden_sizes\[0\]`"),
        ({"pool_ratios": [[8], [4], [], [1]]}, "one or more positive numbers"),
        ({"mlp_groups": [2, 3]}, "multiples of the smallest"),
        ({"mlp_groups": [1, 5]}, "must divide every width"),
        ({"mix_block_ratio": 0.9}, r"`out_sizes\[1\]` \(64\) into 64 channels for self-attention and 0"),
        ({"hidden_sizes": [24, 32, 32, 32], "out_sizes": [24, 64, 64, 64]}, r"`head_dim` \(16\)"),
        ({"drop_path_rate": -0.1}, r"\[0, 1\)"),
        ({"head_dim": 0}, "`head_dim` must be positive"),
    ],
)
def test_impossible_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "not nothing"),
        (torch.zeros(3, 48, 48), r"shape \(3, 48, 48\)"),
        (torch.zeros(1, 1, 48, 48), r"\(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 0, 48), "holds no pixels"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        FMViTModel(config()).eval()(pixel_values)


def test_the_processor_is_found_for_the_configuration(tmp_path):
    config().save_pretrained(tmp_path)
    FMViTImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FMViTImageProcessor
