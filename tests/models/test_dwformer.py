"""DWFormer and MPGNet: published sizes, any image size, both poolings, the parts of the simulator, and clear answers to mistakes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage, pipeline

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.data.photos import photograph
from hf_ext.models.dwformer import (
    DWFormerConfig,
    DWFormerForImageRestoration,
    DWFormerImageProcessor,
    MPGNetConfig,
    MPGNetDiscriminator,
    MPGNetModel,
)
from hf_ext.models.dwformer.modeling_mpgnet import MPGNetSpectralConv
from hf_ext.reproductions.dwformer import PARAMETERS
from tests.passport import CHECKS, Subject
from tests.tiny import TINY


def tiny(**changes):
    config, _ = TINY["dwformer"]()
    torch.manual_seed(0)
    return DWFormerForImageRestoration(DWFormerConfig(**{**config.to_diff_dict(), **changes})).eval()


SMALL = {
    "light_rate_hidden_size": 4,
    "blur_hidden_size": 4,
    "num_blur_layers": 2,
    "noise_hidden_size": 4,
    "num_noise_layers": 1,
    "r_vector_size": 3,
    "discriminator_hidden_size": 4,
}


def small(model_class, **changes):
    torch.manual_seed(0)
    return model_class(MPGNetConfig(**SMALL, **changes)).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def simulator():
    return small(MPGNetModel)


@pytest.mark.parametrize(
    ("name", "model_class", "config"),
    [
        ("DWFormer", DWFormerForImageRestoration, DWFormerConfig.from_preset("dwformer")),
        ("MPGNet", MPGNetModel, MPGNetConfig.from_preset("mpgnet-p")),
        ("MPGNet", MPGNetModel, MPGNetConfig.from_preset("mpgnet-t")),
        ("discriminator", MPGNetDiscriminator, MPGNetConfig()),
    ],
)
def test_a_preset_has_the_published_number_of_parameters(name, model_class, config):
    with torch.device("meta"):
        assert model_class(config).num_parameters() == PARAMETERS[name]


def test_the_parts_of_the_simulator_have_theirs():
    with torch.device("meta"):
        model = MPGNetModel(MPGNetConfig())
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.light_rate, model.blur, model.noise)]
    assert sizes == [88_643, 6_070_403, 2_168_544]


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (11, 12), (12, 16), (13, 18)])
@torch.no_grad()
def test_any_size_keeps_its_size(model, size):
    images = torch.rand(1, 3, *size)
    output = model(images).reconstruction
    assert output.shape == images.shape
    assert output.isfinite().all()


@torch.no_grad()
def test_padding_is_by_reflection(model):
    images = torch.rand(1, 3, 14, 15)
    padded = torch.nn.functional.pad(images, (0, 1, 0, 2), mode="reflect")
    expected = model(padded).reconstruction[:, :, :14, :15]
    torch.testing.assert_close(model(images).reconstruction, expected, atol=0, rtol=0)


@torch.no_grad()
def test_the_default_pool_is_the_sum_of_all_pixels():
    attention = tiny(global_pool="sum").stages[0].layers[0].mixer.attention
    images = torch.randn(2, 8, 5, 6)
    gate = attention.fc2(attention.fc1(images.sum((2, 3))).relu()).sigmoid()
    torch.testing.assert_close(attention(images), images * gate[:, :, None, None])


@torch.no_grad()
def test_the_sum_does_not_overflow_in_half_precision():
    attention = tiny(global_pool="sum").stages[0].layers[0].mixer.attention.half()
    assert attention(torch.full((1, 8, 200, 200), 10.0).half()).isfinite().all()


def test_weights_of_pixels_are_trained_only_where_they_count():
    trained = [
        any(p.requires_grad for name, p in tiny(global_pool=pool).named_parameters() if "pixel_logits" in name)
        for pool in ("sum", "softmax")
    ]
    assert trained == [False, True]


@pytest.mark.parametrize("pool", ["sum", "softmax"])
@torch.no_grad()
def test_fusing_changes_nothing(pool):
    model, images = tiny(global_pool=pool), torch.rand(2, 3, 16, 12)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    expected = model(images).reconstruction
    torch.testing.assert_close(model.fuse()(images).reconstruction, expected, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def test_a_fused_model_saves_and_loads(tmp_path):
    model, images = tiny().fuse(), torch.rand(1, 3, 12, 12)
    model.save_pretrained(tmp_path)
    loaded = DWFormerForImageRestoration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).reconstruction, model(images).reconstruction, atol=0, rtol=0)


def test_the_fused_form_runs_in_onnxruntime():
    config, inputs = TINY["dwformer"]()
    config.fused = True
    CHECKS["onnx"](Subject(DWFormerForImageRestoration, config, inputs))


@torch.no_grad()
def test_the_pipeline_restores_in_tiles(model):
    restore = pipeline("image-to-image", model=model, image_processor=DWFormerImageProcessor())
    image = photograph("flower").crop((100, 100, 150, 140))
    assert restore(image).size == restore(image, tile_size=32).size == image.size


def test_hidden_states_on_request(model):
    maps = model(torch.rand(1, 3, 16, 12), output_hidden_states=True).hidden_states
    full, half, quarter = (8, 16, 12), (12, 8, 6), (16, 4, 3)
    assert [tuple(x.shape[1:]) for x in maps] == [full, full, half, quarter, half, full]


def test_everything_loads_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    DWFormerImageProcessor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DWFormerConfig
    assert type(AutoModelForImageToImage.from_pretrained(tmp_path)) is DWFormerForImageRestoration
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DWFormerImageProcessor


@pytest.mark.parametrize(
    "field",
    [
        {"hidden_sizes": [8, 12, 16, 12]},
        {"hidden_sizes": [8, 12, 16, 8, 8]},
        {"depths": [1, 1, 0, 1, 1]},
        {"mlp_ratios": [0.001] * 5},
        {"squeeze_factor": 100},
        {"global_pool": "mean"},
        {"num_channels": 0},
    ],
    ids=str,
)
def test_an_impossible_configuration_names_the_field(field):
    with pytest.raises(ValueError) as error:
        DWFormerConfig(**field)
    assert f"`{next(iter(field))}`" in str(error.value)


@pytest.mark.parametrize(
    "field", [{"light_rate_act": "tanh"}, {"noise_hidden_size": 0}, {"num_blur_layers": 0}], ids=str
)
def test_an_impossible_simulator_names_the_field(field):
    with pytest.raises(ValueError) as error:
        MPGNetConfig(**field)
    assert f"`{next(iter(field))}`" in str(error.value)


@given(
    widths=st.tuples(*[st.integers(2, 8)] * 3),
    depths=st.lists(st.integers(1, 2), min_size=5, max_size=5),
    pool=st.sampled_from(["sum", "softmax"]),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
)
@settings(max_examples=12, derandomize=True, deadline=None)
@torch.no_grad()
def test_any_configuration_takes_any_image(widths, depths, pool, channels, size):
    full, half, quarter = widths
    model = tiny(num_channels=channels, hidden_sizes=[full, half, quarter, half, full], depths=depths, global_pool=pool)
    images = torch.rand(1, channels, *size)
    assert model(images).reconstruction.shape == images.shape


@torch.no_grad()
def test_given_noise_makes_the_simulation_repeatable(simulator):
    images = torch.rand(2, 3, 16, 12)
    outputs = [simulator(images, generator=torch.Generator().manual_seed(1)).degraded_pixel_values for _ in range(2)]
    torch.testing.assert_close(*outputs, atol=0, rtol=0)
    assert not torch.equal(outputs[0], simulator(images).degraded_pixel_values)


@torch.no_grad()
def test_light_rates_of_p_oled_stay_below_one_and_those_of_t_oled_may_not():
    images = torch.rand(1, 3, 16, 16)
    for act, bound in (("sigmoid", 1.0), ("relu", float("inf"))):
        rate = small(MPGNetModel, light_rate_act=act)(images).light_rate
        assert rate.shape == (1, 3) and ((rate >= 0) & (rate <= bound)).all()


@torch.no_grad()
def test_spectral_convolutions_have_norm_one_after_a_few_forwards():
    torch.manual_seed(0)
    conv = MPGNetSpectralConv(3, 5, 3, padding=1)
    torch.nn.init.normal_(conv.left)
    conv.train()
    for _ in range(100):
        conv(torch.rand(1, 3, 4, 4))
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    torch.testing.assert_close(conv.left @ conv.weight.flatten(1) @ conv.right, largest)


@pytest.mark.parametrize("model_class", [MPGNetModel, MPGNetDiscriminator])
def test_simulator_and_discriminator_save_and_load(model_class, tmp_path):
    model = small(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_every_parameter_of_the_simulator_is_trained():
    model = small(MPGNetModel).train()
    model(torch.rand(2, 3, 16, 16)).degraded_pixel_values.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(6, 8), (4, 8)])
def test_sizes_that_the_simulator_does_not_take_are_named(simulator, size):
    with pytest.raises(ValueError, match=f"multiples of 4 and at least 8, not {size[0]} and {size[1]}"):
        simulator(torch.rand(1, 3, *size))


def test_images_that_differ_in_shape_are_not_compared():
    with pytest.raises(ValueError, match="must have one shape"):
        small(MPGNetDiscriminator)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 16))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "DWFormerForImageRestoration"),
        ({"se_ratio": 2}, "DWFormerForImageRestoration"),
        ({"variant": "T"}, "MPGNetModel"),
        ({"num_feat": 32}, "MPGNetDiscriminator"),
    ],
)
def test_the_arguments_tell_the_class(arguments, name):
    assert get_converter("dwformer").model_class(arguments) == name


def test_arguments_that_no_class_has_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="in_ch, emd_dims"):
        get_converter("dwformer").config({"dim": 3})


def test_a_checkpoint_of_another_size_is_one_error():
    with pytest.raises(ConversionError, match=r"missing: conv_first\.weight"):
        convert_checkpoint("dwformer", {"downproj.weight": torch.zeros(2)}, {})
