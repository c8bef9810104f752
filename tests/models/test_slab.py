"""SLAB's image models: sizes, folding, windows, the backbone, and what they refuse."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoBackbone, AutoImageProcessor

from hf_ext.convert import convert_checkpoint
from hf_ext.layers.repbn import LinearNorm, RepBatchNorm
from hf_ext.models.slab import (
    SlabBackbone,
    SlabConfig,
    SlabForImageClassification,
    SlabImageProcessor,
    SlabModel,
)
from hf_ext.models.slab.modeling_slab import SlabScale, SlabWindowAttention, SlabWindows
from tests.goldens import FOLDER, call_arguments, read_case
from tests.models.vision import (
    count_parameters,
    image,
    onnx_logits,
    train_under_deformable_detr,
    train_under_upernet,
    used,
)
from tests.passport import CHECKS, Subject

PARAMETERS = {
    "slab-swin-t": 29_216_605,
    "slab-swin-s": 50_552_965,
    "slab-swin-b": 89_029_373,
    "swin-t-prepbn": 28_288_383,
    "slab-deit-t": 6_198_401,
    "slab-deit-s": 22_992_641,
    "deit-t-prepbn": 5_717_441,
    "deit-s-prepbn": 22_069_889,
    "slab-pvt-t": 12_157_692,
    "slab-pvt-s": 21_683_788,
    "slab-pvt-m": 37_267_300,
    "pvt-t-prepbn": 13_239_554,
    "pvt-s-prepbn": 24_507_801,
    "pvt-m-prepbn": 44_253_117,
    "slab-cswin-t": 21_227_807,
    "slab-cswin-s": 35_494_205,
}
# What the authors' networks hold and do not use: DeiT's class token, CSWin's `scale` of linear attention
UNUSED = {"slab-deit-t": 192, "slab-deit-s": 384, "slab-cswin-t": 640, "slab-cswin-s": 640}

PYRAMID = {
    "image_size": 64,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [2, 1, 2, 1],
    "linear_depths": [2, 1, 1, 0],
    "num_attention_heads": [2, 2, 3, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "window_sizes": [3, 3, 3, 3],
    "linear_window_sizes": [6, 8, 8, 8],
    "norm_type": "repbn",
    "norm_decay_steps": 10_000_000,
    "drop_path_rate": 0.0,
    "num_labels": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
REDUCED = PYRAMID | {"sr_ratios": [4, 2, 2, 1], "linear_sr_ratios": [2, 1, 1, 1]}
SINGLE = {
    name: [value[0]] if isinstance(value, list) else value for name, value in PYRAMID.items() if name != "out_features"
} | {"architecture": "deit", "image_size": 32, "patch_size": 8, "linear_depths": [1]}
CONFIGS = {
    "swin": PYRAMID | {"use_absolute_embeddings": True},
    "deit": SINGLE,
    "deit with a class token": SINGLE | {"linear_depths": [0], "use_class_token": True},
    "pvt": REDUCED | {"architecture": "pvt"},
    "pvt_v2": REDUCED | {"architecture": "pvt_v2"},
    "cswin": PYRAMID
    | {
        "architecture": "cswin",
        "num_attention_heads": [2, 2, 4, 4],
        "window_sizes": [2, 2, 2, 2],
        "linear_window_sizes": [16, 2, 4, 2],
    },
}
CLASSES = [SlabModel, SlabForImageClassification, SlabBackbone]
KINDS = [
    pytest.param(model_class, name, id=f"{model_class.__name__}-{name}")
    for model_class in CLASSES
    for name in CONFIGS
    if model_class is not SlabBackbone or "class token" not in name
]


def config(name="swin", **overrides) -> SlabConfig:
    return SlabConfig(**(CONFIGS[name] | overrides))


def subject(model_class, name="swin", **overrides) -> Subject:
    chosen = config(name, **overrides)
    inputs = {"pixel_values": 0.1 * image(chosen.image_size, chosen.image_size, 2), "labels": torch.tensor([1, 3])}
    return Subject(model_class, chosen, inputs)


def build(model_class, name="swin", **overrides):
    """In eval mode, with all parameters moved off their initial values and batch statistics of a trained model."""
    return used(subject(model_class, name, **overrides).build())


def tensors_of(output):
    return [x for part in output.to_tuple() for x in (part if isinstance(part, tuple) else (part,))]


@pytest.mark.parametrize("name", SlabConfig.PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    parameters = count_parameters(SlabForImageClassification, SlabConfig.from_preset(name))
    assert parameters + UNUSED.get(name, 0) == PARAMETERS[name]


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="slab-swin-t, slab-swin-s, slab-swin-b"):
        SlabConfig.from_preset("slab-swin-l")


@torch.no_grad()
@pytest.mark.parametrize("norm_type", ["repbn", "prepbn"])
@pytest.mark.parametrize(("model_class", "name"), KINDS)
def test_fusing_changes_no_output(model_class, name, norm_type):
    model = build(model_class, name, norm_type=norm_type)
    pixel_values = image(model.config.image_size, model.config.image_size)
    for ours, expected in zip(tensors_of(deepcopy(model).fuse()(pixel_values)), tensors_of(model(pixel_values))):
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours, expected, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_fusing_leaves_no_repbn_and_a_scale_for_each_norm_of_an_output(name):
    model = build(SlabForImageClassification, name).fuse()
    assert not [m for m in model.modules() if isinstance(m, (RepBatchNorm, LinearNorm, nn.BatchNorm1d))]
    scales = [name for name, module in model.named_modules() if isinstance(module, SlabScale)]
    expected = {"pvt": [], "pvt_v2": [f"slab.encoder.stages.{stage}.norm" for stage in range(4)]}
    assert scales == expected.get(name, ["slab.pooler.norm"])


@torch.no_grad()
def test_the_fused_form_equals_the_reference_too():
    case = read_case(FOLDER / "slab" / "swin_repbn")
    model = convert_checkpoint("slab", case["state_dict"], case["arguments"]).fuse()
    torch.testing.assert_close(
        model(**call_arguments(case)).logits, case["outputs"]["logits"], atol=case["atol"], rtol=case["rtol"]
    )


@torch.no_grad()
@pytest.mark.parametrize("model_class", CLASSES)
def test_the_fused_form_saves_and_loads(model_class, tmp_path):
    model = build(model_class).fuse()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.fused and not info["missing_keys"] and not info["unexpected_keys"]
    for ours, expected in zip(tensors_of(loaded(image(64, 64))), tensors_of(model(image(64, 64)))):
        assert torch.equal(ours, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "pvt"])
def test_the_fused_form_runs_in_onnxruntime(name):
    model = build(SlabForImageClassification, name).fuse()
    torch.testing.assert_close(onnx_logits(model, image(64, 64)), model(image(64, 64)).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_layer_norm_cannot_be_folded_and_stays():
    model = build(SlabForImageClassification, norm_type="layernorm")
    expected = model(image(64, 64)).logits
    assert torch.equal(model.fuse()(image(64, 64)).logits, expected)
    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 1 + 6 * 2 + 3 + 1


@torch.no_grad()
def test_the_base_model_loads_from_a_fused_classifier(tmp_path):
    classifier = build(SlabForImageClassification).fuse()
    classifier.save_pretrained(tmp_path)
    base = SlabModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        classifier.classifier(base(image(64, 64)).pooler_output), classifier(image(64, 64)).logits
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("check", ["gradient_checkpointing", "attention_implementations", "export"])
def test_every_architecture_passes_the_passport(name, check):
    CHECKS[check](subject(SlabForImageClassification, name))


@pytest.mark.parametrize("name", CONFIGS)
def test_training_from_layer_norm_to_repbn_reaches_every_parameter(name):
    trained = subject(SlabForImageClassification, name, norm_type="prepbn", norm_decay_steps=2)
    model = trained.build().train()
    model(**trained.inputs)  # the first step is LayerNorm's alone
    model(**trained.inputs).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any() or "k_proj.bias" in parameter_name, parameter_name


@pytest.mark.parametrize(
    "check", ["save_and_load", "gradients", "gradient_checkpointing", "bfloat16", "export", "load_in_8bit"]
)
def test_the_backbone_passes_the_passport_too(check):
    CHECKS[check](subject(SlabBackbone, norm_type="prepbn"))


@torch.no_grad()
def test_a_window_that_sticks_out_sees_real_tokens_only():
    attention = build(SlabModel).encoder.stages[2].layers[1].attention
    assert isinstance(attention, SlabWindowAttention) and attention.edge == 3
    attention.shift = 0
    query, key, value = image(16, 24, batch=3)[:, 0].unsqueeze(1).unbind()  # each (1, 16, 24): a map of 4x4
    context = attention.attend(query, key, value, (4, 4))
    torch.testing.assert_close(context[:, 15], value[:, 15])  # alone in its window


@torch.no_grad()
def test_shifted_windows_keep_what_was_rolled_in_apart():
    windows = SlabWindows((6, 6), (3, 3), shift=1)
    tokens = torch.arange(36.0).view(1, 36, 1)
    assert torch.equal(windows.join(windows.cut(tokens)), tokens)
    last = windows.mask(torch.device("cpu"))[-1, 0]  # four regions of 4, 2, 2 and 1 tokens
    assert sorted((last == 0).sum(1).tolist()) == sorted([4] * 4 + [2] * 4 + [1])


@torch.no_grad()
def test_linear_attention_over_padded_windows_equals_attention_over_the_real_part():
    attention = build(SlabModel).encoder.stages[0].layers[0].attention
    assert attention.edge == 6
    query, key, value = image(48, 8, batch=3)[:, 0].unsqueeze(1).unbind()  # a map of 8x6: windows of 6x6 and of 2x6
    context = attention.attend(query, key, value, (8, 6))
    linear = attention.linear
    whole = linear(query[:, :36], key[:, :36], value[:, :36], (6, 6), (6, 6))
    torch.testing.assert_close(context[:, :36], whole)
    linear.positional_encoding.data = linear.positional_encoding.data[:, :12]
    linear.size = (2, 6)
    rest = linear(query[:, 36:], key[:, 36:], value[:, 36:], (2, 6), (2, 6))
    torch.testing.assert_close(context[:, 36:], rest)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(["swin", "pvt", "pvt_v2"]),
    height=st.integers(33, 90),
    width=st.integers(33, 90),
    batch=st.integers(1, 2),
)
@torch.no_grad()
def test_any_size_gives_finite_maps_of_all_strides(name, height, width, batch):
    maps = SlabBackbone(config(name)).eval()(image(height, width, batch)).feature_maps
    rounded = -(-height // 4), -(-width // 4)
    first = rounded if name == "pvt_v2" else (height // 4, width // 4)
    assert [x.shape[:2] for x in maps] == [(batch, channels) for channels in (8, 16, 24, 32)]
    assert maps[0].shape[2:] == first
    assert all(x.isfinite().all() for x in maps)


def test_cswin_takes_images_of_its_own_size_only():
    with pytest.raises(ValueError, match="`image_size` only"):
        SlabModel(config("cswin")).eval()(image(96, 64))


@torch.no_grad()
def test_with_a_class_token_that_token_is_classified():
    model = build(SlabModel, "deit with a class token")
    output = model(image(32, 32))
    assert output.last_hidden_state.shape == (1, 17, 8)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


@torch.no_grad()
def test_hidden_states_are_those_of_the_embedding_and_the_stages():
    states = build(SlabModel)(image(64, 64), output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in states] == [(1, 256, 8), (1, 256, 8), (1, 64, 16), (1, 16, 24), (1, 4, 32)]


def test_auto_backbone_returns_the_maps_asked_for():
    backbone = AutoBackbone.from_config(config(out_features=["stem", "stage3"])).eval()
    assert type(backbone) is SlabBackbone
    assert backbone.channels == [8, 24]
    assert [tuple(x.shape) for x in backbone(image(64, 32)).feature_maps] == [(1, 8, 16, 8), (1, 24, 4, 2)]


def test_a_backbone_has_no_map_to_return_with_a_class_token():
    with pytest.raises(ValueError, match="use_class_token"):
        SlabBackbone(config("deit with a class token"))


@pytest.mark.parametrize("name", ["swin", "pvt"])
def test_upstreams_segmenter_trains_on_it(name):
    train_under_upernet(config(name, norm_type="prepbn"))


@pytest.mark.parametrize("name", ["swin", "pvt"])
def test_upstreams_detector_trains_on_it(name):
    train_under_deformable_detr(config(name, norm_type="prepbn"))


def golden(name, **arguments):
    case = read_case(FOLDER / "slab" / name)
    return case["state_dict"], case["arguments"] | arguments


def test_conversion_reads_from_the_weights_what_the_norms_are():
    assert convert_checkpoint("slab", *golden("swin_repbn")).config.norm_type == "repbn"
    assert convert_checkpoint("slab", *golden("pvt_t")).config.norm_type == "prepbn"


def test_conversion_leaves_out_what_the_authors_network_does_not_use():
    state, arguments = golden("swin_repbn")
    buffers = {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(1),
    }
    convert_checkpoint("slab", state | buffers, arguments)


@pytest.mark.parametrize(
    ("attn_type", "linear"), [("LLSS", [2, 2, 0, 0]), ("LLMS2", [2, 2, 2, 0]), ("SMLS1", [0, 1, 6, 0])]
)
def test_the_authors_letters_say_which_layers_are_linear(attn_type, linear):
    from hf_ext.convert.slab import linear_depths

    assert linear_depths({"attn_type": attn_type}, [2, 2, 6, 2]) == linear


@pytest.mark.parametrize("attn_type", ["LLS", "LLSX", "LLMS", "LLSS3"])
def test_other_letters_are_refused(attn_type):
    from hf_ext.convert.slab import linear_depths

    with pytest.raises(ValueError, match="a letter L, S or M for each of 4 stages"):
        linear_depths({"attn_type": attn_type}, [2, 2, 6, 2])


def test_conversion_lists_the_arguments_there_are():
    state, arguments = golden("swin_repbn", window=7)
    with pytest.raises(ValueError, match=r"swin has no arguments .'window'.; it has img_size, in_chans"):
        convert_checkpoint("slab", state, arguments)


def test_conversion_refuses_the_weights_of_something_else():
    with pytest.raises(ValueError, match="No network of SLAB has these weights"):
        convert_checkpoint("slab", {"weight": torch.zeros(1)}, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "vit"}, "one of swin, deit, pvt, pvt_v2, cswin, not 'vit'"),
        ({"architecture": "deit"}, "of which 'deit' has one"),
        ({"norm_type": "batchnorm"}, "one of prepbn, repbn, layernorm"),
        ({"depths": [1, 2]}, "`hidden_sizes` must have 2 entries"),
        ({"linear_depths": [3, 1, 1, 0]}, "`linear_depths` must lie between 0"),
        ({"num_attention_heads": [3, 2, 3, 4]}, "multiples of `num_attention_heads`"),
        ({"kernel_size": 4}, "`kernel_size` must be odd, not 4"),
        ({"window_sizes": [0, 3, 3, 3]}, "`window_sizes` must be positive"),
        ({"sr_ratios": [2, 1, 1, 1]}, "are for 'pvt' and 'pvt_v2'"),
        ({"use_class_token": True}, "for 'deit' with softmax attention"),
        ({"norm_decay_steps": 0}, "`norm_decay_steps` must be positive"),
        ({"norm_warmup_steps": -1}, "must not be negative"),
        ({"drop_path_rate": 1.0}, "\\[0, 1\\)"),
        ({"image_size": 16}, "too small for 4 stages"),
        ({"out_features": ["stage5"]}, "stage_names"),
    ],
)
def test_impossible_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        SlabConfig(**(PYRAMID | fields))


def test_stripes_divide_the_map():
    with pytest.raises(ValueError, match="Stripes of 3 tokens"):
        config("cswin", window_sizes=[2, 2, 3, 2])


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "not nothing"),
        (torch.zeros(3, 64, 64), "shape \\(3, 64, 64\\)"),
        (torch.zeros(1, 1, 64, 64), "\\(batch, 3, height, width\\)"),
        (torch.zeros(1, 3, 0, 64), "holds no pixels"),
        (torch.zeros(1, 3, 3, 64), "too small"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        SlabModel(config()).eval()(pixel_values)


def test_a_map_too_small_to_be_shortened_is_refused():
    with pytest.raises(ValueError, match="shortens maps by 2"):
        SlabModel(config("pvt")).eval()(image(64, 4))


def test_the_processor_prepares_a_photograph_as_the_authors_do(tmp_path):
    config().save_pretrained(tmp_path)
    SlabImageProcessor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is SlabImageProcessor
    photograph = np.full((300, 500, 3), 128, dtype=np.uint8)
    pixel_values = processor(photograph, return_tensors="pt")["pixel_values"]
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values[0, :, 100, 100], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "edge"), [("swin_t", 256), ("cswin_t", 248), ("llama", None)], ids=["Swin", "CSWin", "the language model"]
)
def test_converted_networks_get_the_processor_of_their_architecture(case, edge):
    from hf_ext.convert.slab import processor

    made = processor(json.loads((FOLDER / "slab" / case / "case.json").read_text())["arguments"])
    assert (made and made.size["shortest_edge"]) == edge
