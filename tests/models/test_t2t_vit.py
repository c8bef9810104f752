"""T2T-ViT: sizes, positions, the performer, the backbone, bad input. The Tokens-to-Token module has tests of its own."""

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
from hf_ext.layers.tokens_to_token import TokenPerformer
from hf_ext.models.t2t_vit import (
    T2TViTBackbone,
    T2TViTConfig,
    T2TViTForImageClassification,
    T2TViTImageProcessor,
    T2TViTModel,
)
from tests.models.vision import train_under_deformable_detr
from tests.passport import CHECKS, Subject
from tests.tiny import TINY

# All parameters of the reference: its fixed positions and random features are parameters there and buffers here
PARAMETERS = {
    "t2t-vit-7": 4_310_222,
    "t2t-vit-10": 5_889_230,
    "t2t-vit-12": 6_941_902,
    "t2t-vit-14": 21_545_550,
    "t2t-vit-19": 39_177_422,
    "t2t-vit-24": 64_105_934,
    "t2t-vit-14-384": 21_691_470,
    "t2t-vit-t-14": 21_541_070,
    "t2t-vit-t-19": 39_172_942,
    "t2t-vit-t-24": 64_101_454,
    "t2t-vit-14-resnext": 21_545_550,
    "t2t-vit-14-wide": 25_156_302,
}


@pytest.fixture
def tiny():
    return TINY["t2t_vit"]()


@pytest.mark.parametrize("preset", T2TViTConfig.PRESETS)
def test_presets_have_the_published_size(preset):
    with torch.device("meta"):
        model = T2TViTForImageClassification(T2TViTConfig.from_preset(preset))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == PARAMETERS[preset]


def test_positions_are_the_sinusoids_of_the_sequence(tiny):
    positions = T2TViTModel(tiny[0]).embeddings.position_embeddings
    assert positions.shape == (1, 17, 32)
    angle = 7 / 10000 ** (2 * 3 / 32)
    expected = [torch.tensor(angle, dtype=torch.float64).sin(), torch.tensor(angle, dtype=torch.float64).cos()]
    torch.testing.assert_close(positions[0, 7, 6:8], torch.stack(expected).float())


@torch.no_grad()
def test_another_size_interpolates_the_grid_and_keeps_the_class_position(tiny):
    embeddings = T2TViTModel(tiny[0]).eval().embeddings
    tokens, patches = embeddings(torch.rand(1, 3, 96, 32))
    positions = embeddings.position_embeddings
    torch.testing.assert_close(tokens[:, :1], embeddings.cls_token + positions[:, :1])
    grid = nn.functional.interpolate(
        positions[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), size=(6, 2), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(tokens[:, 1:], patches + grid.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_positions_stay_what_the_checkpoint_says(tiny, tmp_path):
    model = T2TViTModel(tiny[0])
    model.embeddings.position_embeddings.uniform_()
    model.save_pretrained(tmp_path)
    loaded = T2TViTModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.embeddings.position_embeddings, model.embeddings.position_embeddings)


def test_fixed_tensors_are_not_trained(tiny):
    names = {name for name, _ in T2TViTModel(tiny[0]).named_parameters()}
    assert not [name for name in names if "position_embeddings" in name or "random_features" in name]


def test_performer_drops_out_while_training_and_not_otherwise(tiny):
    layer = next(m for m in T2TViTModel(tiny[0]).modules() if isinstance(m, TokenPerformer))
    tokens = torch.rand(1, 9, layer.q_proj.in_features)
    assert not torch.equal(layer.train()(tokens), layer(tokens))
    assert torch.equal(layer.eval()(tokens), layer(tokens))


@torch.no_grad()
def test_performer_runs_in_float32_inside_a_bfloat16_model(tiny):
    """Features of rather long queries and keys: their exponentials need the range and precision of float32."""
    layer = next(m for m in T2TViTModel(tiny[0]).modules() if isinstance(m, TokenPerformer))
    query, key, value = (torch.randn(1, 20, 8).bfloat16() for _ in range(3))
    expected = layer.mix(query.float(), key.float(), value.float())
    torch.testing.assert_close(layer.bfloat16().mix(query, key, value).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("check", sorted(CHECKS.keys() - {"distributed", "auto_class"}))
def test_softmax_tokens_pass_the_passport(tiny, check):
    config, inputs = tiny
    config.token_layer = "transformer"
    CHECKS[check](Subject(T2TViTForImageClassification, config, inputs))


@pytest.mark.parametrize("check", ["batch_independence", "compile", "export", "gradients", "onnx", "save_and_load"])
def test_backbone_passes_the_passport(tiny, check):
    config, inputs = tiny
    CHECKS[check](Subject(T2TViTBackbone, config, {"pixel_values": inputs["pixel_values"]}))


@torch.no_grad()
def test_backbone_gives_the_patches_of_a_layer_as_a_map(tiny):
    config, _ = tiny
    config.out_features = ["stage2"]
    backbone = AutoBackbone.from_config(config).eval()
    assert type(backbone) is T2TViTBackbone
    images = torch.rand(1, 3, 32, 64)
    output = backbone(images, output_hidden_states=True)
    assert output.feature_maps[0].shape == (1, 32, 2, 4)
    torch.testing.assert_close(output.feature_maps[0][0, :, 1, 2], output.hidden_states[2][0, 1 + 4 + 2])


def test_trains_under_upernet(tiny):
    config = UperNetConfig(
        backbone_config=tiny[0], hidden_size=8, pool_scales=[1, 2], num_labels=3, auxiliary_in_channels=32
    )
    model = UperNetForSemanticSegmentation(config)
    output = model(torch.rand(2, 3, 48, 48), labels=torch.randint(0, 3, (2, 48, 48)))
    output.loss.backward()
    assert output.logits.shape == (2, 3, 48, 48)
    assert model.backbone.t2t_vit.embeddings.cls_token.grad.abs().sum() > 0


def test_trains_under_deformable_detr(tiny):
    model = train_under_deformable_detr(tiny[0], 64, 64, names=("stage3",))
    assert any(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("cls_token"))


def test_attention_scale_reaches_the_backbone_only(tiny):
    config, _ = tiny
    config.attention_scale = 0.25
    model = T2TViTModel(config)
    assert {layer.attention.scaling for layer in model.layers} == {0.25}


def test_image_classification_pipeline_runs_from_a_folder(tiny, tmp_path):
    T2TViTForImageClassification(tiny[0]).save_pretrained(tmp_path)
    T2TViTImageProcessor(size={"shortest_edge": 70}, crop_size=64).save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), T2TViTImageProcessor)
    result = pipeline("image-classification", str(tmp_path))(Image.new("L", (80, 90), 128), top_k=2)
    assert len(result) == 2 and set(result[0]) == {"label", "score"}


def test_processor_cuts_out_the_centre_of_248_pixels():
    processor = T2TViTImageProcessor()
    assert processor(Image.new("RGB", (300, 500)), return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)
    assert processor.size["shortest_edge"] == 248


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "nothing"),
        (torch.zeros(3, 48, 48), r"\(3, 48, 48\)"),
        (torch.zeros(1, 1, 48, 48), r"\(1, 1, 48, 48\)"),
        (torch.zeros(0, 3, 48, 48), "no pixels"),
        (torch.zeros(1, 3, 48, 40), r"multiples of 16, not \(48, 40\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(tiny, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        T2TViTModel(tiny[0])(pixel_values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 100),
        ("token_layer", "convolution"),
        ("token_size", 1),
        ("num_attention_heads", 5),
        ("num_hidden_layers", 0),
        ("drop_path_rate", 1.0),
    ],
)
def test_impossible_configurations_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        T2TViTConfig(**{field: value})


def test_converter_refuses_an_unknown_argument():
    with pytest.raises(ValueError, match="tokens_kind"):
        convert_checkpoint("t2t_vit", {}, {"tokens_kind": "performer"})


@torch.no_grad()
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    token_layer=st.sampled_from(["performer", "transformer"]),
    heads=st.sampled_from([1, 2, 4]),
    edges=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
)
def test_every_sixteen_pixels_make_a_token(token_layer, heads, edges, channels):
    config = T2TViTConfig(
        image_size=32,
        token_layer=token_layer,
        token_size=6,
        num_channels=channels,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=heads,
        intermediate_size=8,
    )
    images = torch.rand(2, channels, *(16 * edge for edge in edges))
    output = T2TViTModel(config).eval()(images)
    assert output.last_hidden_state.shape == (2, 1 + edges[0] * edges[1], 8)
    assert output.last_hidden_state.isfinite().all()
