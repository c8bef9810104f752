"""CrossViT: published sizes, any image size, the authors' preprocessing, and clear answers to mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_ext.convert import ConversionError, apply_rules, convert_checkpoint, get_converter
from hf_ext.models.crossvit import CrossVitConfig, CrossVitForImageClassification, CrossVitImageProcessor, CrossVitModel
from tests.tiny import TINY

PARAMETERS = {
    "crossvit-tiny-224": 7_014_800,
    "crossvit-small-224": 26_856_272,
    "crossvit-base-224": 105_025_232,
    "crossvit-9-224": 8_553_296,
    "crossvit-15-224": 27_528_464,
    "crossvit-18-224": 43_271_408,
    "crossvit-9-dagger-224": 8_776_592,
    "crossvit-15-dagger-224": 28_209_008,
    "crossvit-18-dagger-224": 44_266_976,
    "crossvit-15-dagger-384": 28_500_080,
    "crossvit-18-dagger-384": 44_606_560,
}


def tiny(**changes):
    config, _ = TINY["crossvit"]()
    torch.manual_seed(0)
    return CrossVitForImageClassification(CrossVitConfig(**{**config.to_diff_dict(), **changes})).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = CrossVitForImageClassification(CrossVitConfig.from_preset(name))
    assert model.num_parameters() == PARAMETERS[name]


def test_presets_are_all_covered():
    assert set(CrossVitConfig.PRESETS) == set(PARAMETERS)


@torch.no_grad()
def test_each_branch_resizes_the_image_to_its_own_square(model):
    images = torch.rand(1, 3, 30, 50)
    branches = model(images, output_branch_hidden_states=True).branch_hidden_states
    assert [tuple(tokens.shape) for tokens in branches] == [(1, 1 + 16, 16), (1, 1 + 4, 32)]


@torch.no_grad()
def test_interpolation_changes_nothing_at_the_models_own_size(model):
    images = torch.rand(1, 3, 24, 24)
    expected = model(images).logits
    torch.testing.assert_close(model(images, interpolate_pos_encoding=True).logits, expected, atol=0, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (24, 72), (31, 17), (1, 1)])
@torch.no_grad()
def test_interpolation_keeps_resolution_and_aspect_ratio(model, size):
    outputs = model(torch.rand(1, 3, *size), interpolate_pos_encoding=True, output_branch_hidden_states=True)
    patches = outputs.branch_hidden_states[0].shape[1] - 1
    assert patches == max(round(size[0] / 6), 1) * max(round(size[1] / 6), 1)
    assert outputs.logits.isfinite().all()


@torch.no_grad()
def test_logits_are_the_mean_of_the_branches(model):
    outputs = model(torch.rand(2, 3, 24, 24), output_branch_hidden_states=True)
    each = [head(tokens[:, 0]) for head, tokens in zip(model.classifiers, outputs.branch_hidden_states)]
    torch.testing.assert_close(outputs.logits, (each[0] + each[1]) / 2)


@torch.no_grad()
def test_branches_exchange_their_class_tokens_at_the_same_time(model):
    """What a branch gets depends on the other's tokens before the fusion: swapping the order of the fusions changes nothing."""
    stage = model.crossvit.stages[0]
    tokens = [torch.rand(1, 17, 16), torch.rand(1, 5, 32)]
    fused = stage(tokens)
    own = [layers[0](x) if len(layers) == 1 else layers[1](layers[0](x)) for layers, x in zip(stage.branches, tokens)]
    torch.testing.assert_close(fused[1][:, :1], stage.fusions[1](own[1][:, :1], own[0][:, 1:]))
    torch.testing.assert_close(fused[0][:, :1], stage.fusions[0](own[0][:, :1], own[1][:, 1:]))


@torch.no_grad()
def test_attentions_and_hidden_states_on_request():
    model = tiny()
    model.set_attn_implementation("eager")
    outputs = model(torch.rand(2, 3, 24, 24), output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in outputs.attentions] == [
        (2, 2, 17, 17),  # first stage: one layer in the first branch, two in the second
        (2, 4, 5, 5),
        (2, 4, 5, 5),
        (2, 2, 17, 17),
        (2, 4, 5, 5),
    ]
    assert [tuple(x.shape) for x in outputs.cross_attentions] == [
        (2, 4, 1, 5),  # the first branch's class token on the second branch's patches
        (2, 2, 1, 17),
        (2, 4, 1, 5),  # second stage: two cross-attention layers, of which the second sees the class token only
        (2, 4, 1, 1),
        (2, 2, 1, 17),
        (2, 2, 1, 1),
    ]
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("patch_embedding", ["linear", "conv_stem", "t2t_transformer", "t2t_performer"])
def test_every_patch_embedding_trains_and_survives_saving(patch_embedding, tmp_path):
    model = tiny(image_sizes=[24, 32], patch_sizes=[12, 16], patch_embedding=patch_embedding).train()
    model(torch.rand(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32)
    loaded = CrossVitForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).logits, model(images).logits, atol=1e-6, rtol=1e-5)


def test_the_performers_random_features_are_orthogonal():
    layer = tiny(patch_sizes=[12, 16], image_sizes=[24, 32], patch_embedding="t2t_performer").crossvit
    features = layer.embeddings[0].patch_embeddings.layers[0].random_features
    torch.testing.assert_close(features @ features.t(), torch.eye(32) * 32, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 24, 24), "(1, 1, 24, 24)"), ((3, 24, 24), "(3, 24, 24)"), ((1, 3, 0, 24), "no pixels")],
)
def test_a_wrong_input_is_named(model, shape, message):
    with pytest.raises(ValueError) as error:
        model(torch.rand(shape))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"image_sizes": [240, 230]}, "image_sizes"),
        ({"image_sizes": [240]}, "image_sizes"),
        ({"hidden_sizes": [128, 255]}, "num_attention_heads"),
        ({"mlp_ratios": [3, 3, 1]}, "mlp_ratios"),
        ({"depths": [[1, 3]]}, "depths"),
        ({"depths": []}, "depths"),
        ({"depths": [[0, 3, 0]]}, "depths"),
        ({"patch_embedding": "resnet"}, "patch_embedding"),
        ({"patch_embedding": "conv_stem", "patch_sizes": [8, 16]}, "patch_embedding"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"num_channels": 0}, "num_channels"),
        ({"num_labels": 0}, "num_labels"),
    ],
    ids=str,
)
def test_an_impossible_configuration_names_the_field(fields, name):
    with pytest.raises(ValueError) as error:
        CrossVitConfig(**fields)
    assert f"`{name}`" in str(error.value)


@given(
    branches=st.integers(1, 3),
    depth=st.integers(1, 2),
    fusion=st.integers(0, 2),
    stages=st.integers(1, 2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolate=st.booleans(),
)
@settings(max_examples=12, derandomize=True, deadline=None)
@torch.no_grad()
def test_any_configuration_takes_any_image(branches, depth, fusion, stages, size, interpolate):
    model = tiny(
        image_sizes=[8, 16, 12][:branches],
        patch_sizes=[4, 8, 6][:branches],
        hidden_sizes=[8, 12, 16][:branches],
        num_attention_heads=[2, 3, 4][:branches],
        mlp_ratios=[1, 2, 1.5][:branches],
        depths=[[depth] * branches + [fusion]] * stages,
    )
    logits = model(torch.rand(1, 3, *size), interpolate_pos_encoding=interpolate).logits
    assert logits.shape == (1, 3)
    assert logits.isfinite().all()


def test_everything_loads_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    CrossVitImageProcessor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CrossVitConfig
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is CrossVitForImageClassification
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CrossVitImageProcessor
    assert type(CrossVitModel.from_pretrained(tmp_path)) is CrossVitModel


def test_upstreams_pipelines_take_batches(model):
    processor = CrossVitImageProcessor(size={"height": 24, "width": 24}, do_center_crop=False)
    images = [Image.new("RGB", (30, 20), (i * 60, 80, 200)) for i in range(3)]
    classify = pipeline("image-classification", model=model, image_processor=processor)
    one_by_one = classify(images, top_k=1)
    assert [x[0]["label"] for x in classify(images, top_k=1, batch_size=3)] == [x[0]["label"] for x in one_by_one]
    extract = pipeline("image-feature-extraction", model=model.crossvit, image_processor=processor, pool=True)
    assert np.shape(extract(images, batch_size=3)) == (3, 1, 16 + 32)


def test_the_processor_is_the_authors_transform():
    """Resize(274, bicubic), CenterCrop(240), ToTensor, Normalize, written out with PIL."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    resized = image.resize((int(274 * 401 / 300), 274), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 240) / 2), round((274 - 240) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 240, top + 240)), dtype=np.float32) / 255
    expected = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    pixel_values = CrossVitImageProcessor()(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixel_values, torch.from_numpy(expected).movedim(-1, 0), atol=1e-5, rtol=0)


def test_timms_names_convert_too():
    arguments = {
        "img_size": [16, 16],
        "patch_size": [8, 4],
        "embed_dim": [8, 16],
        "depth": [[1, 1, 0]],
        "num_classes": 3,
    }
    arguments |= {"num_heads": [2, 2], "mlp_ratio": [1, 1, 1]}
    converter = get_converter("crossvit")
    shapes = {"pos_embed_0": (1, 5, 8), "cls_token_1": (1, 1, 16)}
    renamed = apply_rules({name: torch.zeros(shape) for name, shape in shapes.items()}, converter.RULES)
    own = CrossVitForImageClassification(converter.config(arguments)).state_dict()
    assert {name: tuple(own[name].shape) for name in renamed} == dict(zip(renamed, shapes.values()))


def test_the_reference_defaults_convert():
    config = get_converter("crossvit").config({})
    assert (config.patch_sizes, config.hidden_sizes, config.qkv_bias) == ([8, 16], [192, 384], False)
    assert (config.layer_norm_eps, config.num_labels) == (1e-5, 1000)


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['embed_dims'\]; it has img_size"):
        get_converter("crossvit").config({"embed_dims": [96, 192]})


def test_a_checkpoint_that_does_not_fit_is_one_error():
    arguments = {"embed_dim": [8, 16], "num_heads": [2, 2], "depth": [[1, 1, 0]]}
    with pytest.raises(ConversionError, match=r"left over: blocksx [\s\S]* missing: classifiers\.1\.bias"):
        convert_checkpoint("crossvit", {"blocksx": torch.zeros(1)}, arguments)
