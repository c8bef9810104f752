"""EfficientFormer: sizes, the dense backbone, distillation, fusing, old checkpoints, bad input."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from hf_ext.convert import convert_checkpoint
from hf_ext.models.efficientformer import (
    EfficientFormerBackbone,
    EfficientFormerConfig,
    EfficientFormerForImageClassification,
    EfficientFormerForImageClassificationWithTeacher,
    EfficientFormerImageProcessor,
    EfficientFormerModel,
)
from tests.models.vision import train_under_deformable_detr
from tests.passport import CHECKS, Subject
from tests.tiny import TINY

PARAMETERS = {"efficientformer-l1": 12_289_928, "efficientformer-l3": 31_406_000, "efficientformer-l7": 82_229_328}


@pytest.fixture
def tiny():
    return TINY["efficientformer"]()


def moved(model):
    """Every tensor off its initial value, so that nothing cancels."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise, alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("preset", EfficientFormerConfig.PRESETS)
def test_presets_have_the_published_number_of_parameters(preset):
    with torch.device("meta"):
        model = EfficientFormerForImageClassification(EfficientFormerConfig.from_preset(preset))
    assert model.num_parameters() == PARAMETERS[preset]


@torch.no_grad()
def test_logits_are_the_mean_of_both_heads(tiny):
    config, inputs = tiny
    output = moved(EfficientFormerForImageClassification(config))(inputs["pixel_values"])
    torch.testing.assert_close(output.logits, (output.cls_logits + output.distillation_logits) / 2)


@torch.no_grad()
def test_without_a_teacher_there_is_one_head(tiny):
    config, inputs = tiny
    config.distillation = False
    output = EfficientFormerForImageClassification(config).eval()(inputs["pixel_values"])
    assert output.distillation_logits is None
    assert torch.equal(output.logits, output.cls_logits)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_loss_is_that_of_deit(tiny, kind):
    config, inputs = tiny
    config.distillation_type, config.distillation_alpha, config.distillation_temperature = kind, 0.3, 2.0
    teacher = torch.randn(2, 4)
    output = moved(EfficientFormerForImageClassification(config))(**inputs, teacher_logits=teacher)
    taught = {
        "hard": torch.nn.functional.cross_entropy(output.distillation_logits, teacher.argmax(1)),
        "soft": torch.nn.functional.kl_div(
            (output.distillation_logits / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="sum"
        )
        * 4
        / 8,
    }[kind]
    own = torch.nn.functional.cross_entropy(output.cls_logits, inputs["labels"])
    torch.testing.assert_close(output.loss, 0.7 * own + 0.3 * taught)


def test_teacher_logits_of_another_shape_are_refused(tiny):
    config, inputs = tiny
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        EfficientFormerForImageClassification(config)(**inputs, teacher_logits=torch.zeros(2, 5))


def test_the_teachers_class_needs_a_teachers_head(tiny):
    tiny[0].distillation = False
    with pytest.raises(ValueError, match="distillation"):
        EfficientFormerForImageClassificationWithTeacher(tiny[0])


@torch.no_grad()
@pytest.mark.parametrize("model_class", [EfficientFormerForImageClassification, EfficientFormerBackbone])
def test_fused_model_gives_the_same(tiny, model_class, tmp_path):
    config, inputs = tiny
    model = moved(model_class(config))
    before = model(inputs["pixel_values"])[0]
    before = before if isinstance(before, torch.Tensor) else torch.cat([x.flatten() for x in before])
    parameters = model.num_parameters()
    model.fuse()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["fused"]
    for fused in (model, model_class.from_pretrained(tmp_path)):
        after = fused(inputs["pixel_values"])[0]
        after = after if isinstance(after, torch.Tensor) else torch.cat([x.flatten() for x in after])
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert model.num_parameters() < parameters
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("check", ["onnx", "save_and_load", "export"])
def test_fused_model_passes_the_passport(tiny, check):
    config, inputs = tiny
    config.fused = True
    CHECKS[check](Subject(EfficientFormerForImageClassification, config, inputs))


@pytest.mark.parametrize("check", sorted(CHECKS.keys() - {"distributed", "auto_class"}))
def test_backbone_passes_the_passport(tiny, check):
    config, inputs = tiny
    CHECKS[check](Subject(EfficientFormerBackbone, config, {"pixel_values": inputs["pixel_values"]}))


@torch.no_grad()
def test_backbone_takes_any_size(tiny, tmp_path):
    config, _ = tiny
    config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, out_features=["stem", "stage2", "stage4"])
    backbone = AutoBackbone.from_config(
        config
    ).eval()  # AutoBackbone.from_pretrained of Transformers 5.23 asks the Hub first
    assert type(backbone) is EfficientFormerBackbone
    maps = backbone(torch.rand(1, 3, 70, 33)).feature_maps
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 18, 9), (12, 9, 5), (24, 3, 2)]
    assert backbone.channels == [8, 12, 24]


@torch.no_grad()
def test_dense_biases_are_exact_at_their_own_size(tiny):
    """At bias_resolution the interpolation over (query, key) changes nothing, so the dense network is the classifier's."""
    config, _ = tiny
    config.bias_resolution = config.resolution
    classifier, dense = moved(EfficientFormerModel(config)), EfficientFormerModel(config, dense=True).eval()
    state = {k.replace("attention_biases", "attention_biases_seg"): v for k, v in classifier.state_dict().items()}
    dense.load_state_dict({k: v for k, v in state.items() if not k.startswith("layernorm.")})
    pixel_values = torch.rand(1, 3, 40, 40)
    expected = classifier(pixel_values).last_hidden_state
    torch.testing.assert_close(classifier.layernorm(dense(pixel_values).last_hidden_state), expected)


def test_trains_under_upernet(tiny):
    config = UperNetConfig(
        backbone_config=tiny[0], hidden_size=8, pool_scales=[1, 2], num_labels=3, auxiliary_in_channels=16
    )
    model = UperNetForSemanticSegmentation(config)
    output = model(torch.rand(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64)))
    output.loss.backward()
    assert output.logits.shape == (2, 3, 64, 64)
    assert model.backbone.efficientformer.patch_embed.convolution1.weight.grad.abs().sum() > 0


def test_trains_under_deformable_detr(tiny):
    model = train_under_deformable_detr(tiny[0], 64, 64)
    weights = [p for name, p in model.named_parameters() if name.endswith("patch_embed.convolution1.weight")]
    assert weights[0].grad.abs().sum() > 0


@torch.no_grad()
def test_folder_of_transformers_4_loads(tiny, tmp_path):
    """Those files hold index buffers, and fields of the configuration that have gone."""
    config, inputs = tiny
    model = moved(EfficientFormerForImageClassification(config))
    state = model.state_dict()
    name = "efficientformer.encoder.last_stage.meta3D_layers.blocks.0.token_mixer.attention_bias_idxs"
    model.save_pretrained(tmp_path, state_dict={**state, name: torch.zeros(4, 4, dtype=torch.long)})
    fields = json.loads((tmp_path / "config.json").read_text())
    for gone in ("fused", "bias_resolution", "distillation_type", "out_features", "out_indices", "stage_names"):
        fields.pop(gone, None)
    fields |= {"architectures": ["EfficientFormerForImageClassificationWithTeacher"], "dim": 24, "num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(inputs["pixel_values"]).logits, model(inputs["pixel_values"]).logits)


@torch.no_grad()
def test_every_attention_block_shows_its_weights(tiny):
    config, inputs = tiny
    model = EfficientFormerModel(config).eval()
    model.set_attn_implementation("eager")
    output = model(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    assert [x.shape for x in output.attentions] == [(2, 2, 4, 4)]
    assert [tuple(x.shape[1:]) for x in output.hidden_states] == [
        (8, 10, 10), (8, 10, 10), (12, 5, 5), (16, 3, 3), (24, 2, 2)
    ]  # fmt: skip


@torch.no_grad()
def test_processor_crops_as_the_authors_do():
    processor = EfficientFormerImageProcessor()
    image = Image.effect_noise((310, 500), 80).convert("RGB")
    pixels = processor(image, return_tensors="pt").pixel_values
    resized = image.resize((248, 400), Image.Resampling.BICUBIC).crop((12, 88, 236, 312))
    expected = torch.tensor(list(resized.getdata()), dtype=torch.float32).view(224, 224, 3).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor(processor.image_mean).view(3, 1, 1)) / torch.tensor(processor.image_std).view(
        3, 1, 1
    )
    torch.testing.assert_close(pixels[0], expected, atol=1e-5, rtol=1e-5)


def test_image_classification_pipeline_runs_from_a_folder(tiny, tmp_path):
    EfficientFormerForImageClassification(tiny[0]).save_pretrained(tmp_path)
    EfficientFormerImageProcessor(size={"shortest_edge": 44}, crop_size=40).save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), EfficientFormerImageProcessor)
    result = pipeline("image-classification", str(tmp_path))(Image.new("L", (50, 60), 128), top_k=2)
    assert len(result) == 2 and set(result[0]) == {"label", "score"}


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "nothing"),
        (torch.zeros(3, 40, 40), r"\(3, 40, 40\)"),
        (torch.zeros(1, 1, 40, 40), r"\(1, 1, 40, 40\)"),
        (torch.zeros(0, 3, 40, 40), "no pixels"),
        (torch.zeros(1, 3, 80, 40), "2x2 tokens and the image gives 6"),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        EfficientFormerModel(tiny[0])(pixel_values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depths", [1, 1, 1]),
        ("hidden_sizes", [7, 8, 8, 8]),
        ("downsamples", [True]),
        ("num_meta3d_blocks", 5),
        ("pool_size", 2),
        ("drop_path_rate", 1.0),
        ("distillation_type", "warm"),
        ("distillation_alpha", 1.5),
        ("key_dim", 0),
    ],
)
def test_impossible_configurations_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        EfficientFormerConfig(**{field: value})


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="efficientformer-l1, efficientformer-l3"):
        EfficientFormerConfig.from_preset("l9")


def test_converter_refuses_an_unknown_argument():
    arguments = {"layers": [1, 1, 1, 1], "embed_dims": [8] * 4, "downsamples": [True] * 4, "vit_nums": 1}
    with pytest.raises(ValueError, match="vit_nums"):
        convert_checkpoint("efficientformer", {}, arguments)


@torch.no_grad()
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    last=st.sampled_from([(1, 1), (2, 0), (2, 2)]),
    downsamples=st.lists(st.booleans(), min_size=3, max_size=3),
    pool_size=st.sampled_from([1, 3, 5]),
    use_layer_scale=st.booleans(),
    edges=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_maps_halve_where_the_configuration_says(last, downsamples, pool_size, use_layer_scale, edges):
    config = EfficientFormerConfig(
        depths=[1, 1, 1, last[0]],
        num_meta3d_blocks=last[1],
        hidden_sizes=[8] * 4,
        downsamples=downsamples,
        pool_size=pool_size,
        use_layer_scale=use_layer_scale,
        num_attention_heads=1,
        key_dim=4,
        bias_resolution=2,
        out_indices=[0, 1, 2, 3, 4],
    )
    maps = EfficientFormerBackbone(config).eval()(torch.rand(1, 3, *edges)).feature_maps
    sizes = [tuple(-(-edge // 4) for edge in edges)] * 2
    for halves in downsamples:
        sizes.append(tuple(-(-edge // (2 if halves else 1)) for edge in sizes[-1]))
    assert [tuple(x.shape[2:]) for x in maps] == sizes
    assert all(x.isfinite().all() for x in maps)
