"""DualToken-ViT: sizes, odd images, global tokens, fusing, the backbone, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from hf_ext.convert import convert_checkpoint
from hf_ext.models.dualtoken_vit import (
    DualTokenViTBackbone,
    DualTokenViTConfig,
    DualTokenViTForImageClassification,
    DualTokenViTImageProcessor,
    DualTokenViTModel,
)
from tests.models.vision import train_under_deformable_detr
from tests.passport import CHECKS, Subject
from tests.tiny import TINY

PARAMETERS = {
    "dualtoken-vit-tiny-mix": 7_205_758,
    "dualtoken-vit-small-mix": 11_581_358,
    "dualtoken-vit-small": 12_014_902,
}


@pytest.fixture
def tiny():
    return TINY["dualtoken_vit"]()


@pytest.mark.parametrize("preset", DualTokenViTConfig.PRESETS)
def test_presets_have_the_number_of_parameters_of_the_specification(preset):
    with torch.device("meta"):
        model = DualTokenViTForImageClassification(DualTokenViTConfig.from_preset(preset))
    assert model.num_parameters() == PARAMETERS[preset]


def test_the_small_network_is_the_default():
    assert (
        DualTokenViTConfig().to_diff_dict()
        == DualTokenViTConfig.from_preset("dualtoken-vit-small-mix", num_labels=2).to_diff_dict()
    )


@torch.no_grad()
def test_global_weight_one_leaves_the_image_out_of_the_global_tokens(tiny):
    config, _ = tiny
    config.global_weight = 1.0
    model = DualTokenViTModel(config).eval()
    first, second = (model(torch.rand(1, 3, 40, 56)).global_tokens for _ in range(2))
    assert torch.equal(first, second)


@torch.no_grad()
def test_global_weight_zero_leaves_only_the_image(tiny):
    config, _ = tiny
    config.global_weight = 0.0
    model = DualTokenViTModel(config).eval()
    images = torch.rand(1, 3, 40, 56)
    before = model(images).global_tokens
    model.global_tokens.normal_()
    assert torch.equal(model(images).global_tokens, before)


@torch.no_grad()
def test_merging_an_odd_map_pads_with_zeros_that_the_maximum_sees(tiny):
    merge = DualTokenViTModel(tiny[0]).stages[1].downsample
    nn.init.zeros_(merge.reduction.weight)
    nn.init.eye_(merge.res_proj.weight)
    merged, _ = merge(-torch.ones(1, 8, 3, 2), torch.zeros(1, 9, 8))
    assert merged.shape == (1, 16, 2, 1)
    assert merged[0, :8, 0].unique().tolist() == [-1]
    assert merged[0, :8, 1].unique().tolist() == [0]


@torch.no_grad()
def test_merging_orders_the_corners_as_lightvit_does(tiny):
    merge = DualTokenViTModel(tiny[0]).stages[1].downsample
    corners = []
    merge.norm.register_forward_pre_hook(lambda _, arguments: corners.append(arguments[0]))
    feature_map = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(1, 8, 2, 2)
    merge(feature_map, torch.zeros(1, 9, 8))
    assert corners[0][0, 0, ::8].tolist() == [0, 2, 1, 3]


@torch.no_grad()
@pytest.mark.parametrize("model_class", [DualTokenViTForImageClassification, DualTokenViTBackbone])
def test_fused_model_gives_the_same(tiny, model_class, tmp_path):
    config, inputs = tiny
    model = model_class(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    expected = model(inputs["pixel_values"])
    model.fuse().save_pretrained(tmp_path)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for fused in (model, model_class.from_pretrained(tmp_path)):
        assert fused.config.fused
        for ours, theirs in zip(fused(inputs["pixel_values"]).to_tuple(), expected.to_tuple()):
            ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fused_model_exports_to_onnx(tiny):
    config, inputs = tiny
    config.fused = True
    CHECKS["onnx"](Subject(DualTokenViTForImageClassification, config, inputs))


@pytest.mark.parametrize("check", ["attention_implementations", "batch_independence", "gradients", "save_and_load"])
def test_channel_mixing_of_global_tokens_passes_the_passport(tiny, check):
    config, inputs = tiny
    config.global_mixer = "mlp"
    CHECKS[check](Subject(DualTokenViTForImageClassification, config, inputs))


@pytest.mark.parametrize("check", ["batch_independence", "compile", "export", "gradients", "save_and_load"])
def test_backbone_passes_the_passport(tiny, check):
    config, inputs = tiny
    CHECKS[check](Subject(DualTokenViTBackbone, config, {"pixel_values": inputs["pixel_values"]}))


@torch.no_grad()
def test_backbone_gives_maps_of_strides_8_16_32(tiny):
    config, _ = tiny
    config.out_features = ["stem", "stage2", "stage3"]
    backbone = AutoBackbone.from_config(config).eval()
    assert type(backbone) is DualTokenViTBackbone
    maps = backbone(torch.rand(1, 3, 70, 33)).feature_maps
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 9, 5), (16, 5, 3), (24, 3, 2)]
    assert backbone.channels == [8, 16, 24]
    for feature_map in maps:  # a fresh norm has weight one and bias zero
        torch.testing.assert_close(feature_map.mean(1), torch.zeros_like(feature_map[:, 0]), atol=1e-5, rtol=0)


def test_trains_under_upernet(tiny):
    tiny[0].out_features = ["stem", "stage1", "stage2", "stage3"]
    config = UperNetConfig(
        backbone_config=tiny[0], hidden_size=8, pool_scales=[1, 2], num_labels=3, auxiliary_in_channels=16
    )
    model = UperNetForSemanticSegmentation(config)
    output = model(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64)))
    output.loss.backward()
    assert output.logits.shape == (2, 3, 64, 64)
    assert model.backbone.dualtoken_vit.global_tokens.grad.abs().sum() > 0


def test_trains_under_deformable_detr(tiny):
    model = train_under_deformable_detr(tiny[0], 64, 64, names=("stage1", "stage2", "stage3"))
    assert any(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("global_tokens"))


@torch.no_grad()
def test_every_block_shows_how_the_image_reads_the_global_tokens(tiny):
    model = DualTokenViTModel(tiny[0]).eval()
    model.set_attn_implementation("eager")
    output = model(torch.rand(1, 3, 64, 64), output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in output.attentions] == [(1, 2, 64, 9), (1, 2, 16, 9), (1, 2, 16, 9), (1, 3, 4, 9)]
    assert [tuple(x.shape[1:]) for x in output.hidden_states] == [(8, 8, 8), (8, 8, 8), (16, 4, 4), (24, 2, 2)]


def test_image_classification_pipeline_runs_from_a_folder(tiny, tmp_path):
    DualTokenViTForImageClassification(tiny[0]).save_pretrained(tmp_path)
    DualTokenViTImageProcessor(size={"shortest_edge": 70}, crop_size=64).save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), DualTokenViTImageProcessor)
    result = pipeline("image-classification", str(tmp_path))(Image.new("L", (80, 90), 128), top_k=2)
    assert len(result) == 2 and set(result[0]) == {"label", "score"}


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "nothing"),
        (torch.zeros(3, 48, 48), r"\(3, 48, 48\)"),
        (torch.zeros(1, 1, 48, 48), r"\(1, 1, 48, 48\)"),
        (torch.zeros(1, 3, 0, 48), "no pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        DualTokenViTModel(tiny[0])(pixel_values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depths", [1, 1]),
        ("hidden_sizes", [7, 8, 8]),
        ("num_attention_heads", [3, 4, 8]),
        ("conv_kernel_size", 4),
        ("global_mixer", "attention"),
        ("global_weight", 1.5),
        ("drop_path_rate", 1.0),
    ],
)
def test_impossible_configurations_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        DualTokenViTConfig(**{field: value})


def test_converter_refuses_an_unknown_argument():
    with pytest.raises(ValueError, match="num_tokens"):
        convert_checkpoint("dualtoken_vit", {}, {"num_tokens": 8})


@torch.no_grad()
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    mixer=st.sampled_from(["mlp", "mix"]),
    grid=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 7]),
    conv_ratio=st.sampled_from([0.5, 1, 4]),
    edges=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_any_image_keeps_the_grid_of_global_tokens(mixer, grid, kernel, conv_ratio, edges):
    config = DualTokenViTConfig(
        hidden_sizes=[8, 8, 8],
        depths=[1, 1, 1],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[1, 1, 1],
        conv_kernel_size=kernel,
        conv_ratio=conv_ratio,
        global_mixer=mixer,
        global_grid=grid,
        neck_dim=8,
    )
    output = DualTokenViTModel(config).eval()(torch.rand(2, 3, *edges))
    assert output.global_tokens.shape == (2, grid**2, 8)
    assert output.last_hidden_state.shape == (2, -(-edges[0] // 32) * -(-edges[1] // 32), 8)
    assert output.pooler_output.isfinite().all()
