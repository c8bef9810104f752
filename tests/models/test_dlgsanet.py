"""DLGSANet: published sizes, any image size, windows at test time, and clear answers to mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage, pipeline

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.data.photos import photograph
from hf_ext.models.dlgsanet import (
    DLGSANetConfig,
    DLGSANetForImageSuperResolution,
    DLGSANetImageProcessor,
    DLGSANetModel,
)
from hf_ext.models.dlgsanet.modeling_dlgsanet import averaged_windows, window_starts
from hf_ext.reproductions.dlgsanet import PUBLISHED, counted, start_as_interpolation
from tests.tiny import TINY


def tiny(**changes):
    config, _ = TINY["dlgsanet"]()
    torch.manual_seed(0)
    return DLGSANetForImageSuperResolution(DLGSANetConfig(**{**config.to_diff_dict(), **changes})).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = DLGSANetForImageSuperResolution(DLGSANetConfig.from_preset(name))
    assert model.num_parameters() == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_costs_what_the_authors_count(name):
    config = DLGSANetConfig.from_preset(name)
    operations = counted(config, -(-1280 // config.upscale), 720 // config.upscale)
    assert f"{operations / 1e9:.1f}" == PUBLISHED[name][1]


def test_presets_are_all_covered():
    assert set(DLGSANetConfig.PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (7, 7), (13, 8)])
@torch.no_grad()
def test_any_size_comes_out_enlarged(model, size):
    output = model(torch.rand(1, 3, *size)).reconstruction
    assert output.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("upsampler", "upscale"), [("pixelshuffledirect", 1), ("pixelshuffledirect", 5), ("pixelshuffle", 3)]
)
@torch.no_grad()
def test_scales(upsampler, upscale):
    assert tiny(upsampler=upsampler, upscale=upscale)(torch.rand(1, 3, 4, 4)).reconstruction.shape[-1] == 4 * upscale


@torch.no_grad()
def test_one_channel_images():
    assert tiny(num_channels=1)(torch.rand(1, 1, 6, 6)).reconstruction.shape == (1, 1, 12, 12)


@torch.no_grad()
def test_windows_change_nothing_where_the_image_fits_one(model):
    images = torch.rand(1, 3, 7, 6)
    whole = tiny(attention_window_size=None)(images).reconstruction
    torch.testing.assert_close(model(images).reconstruction, whole, atol=0, rtol=0)


@torch.no_grad()
def test_windows_change_a_larger_image(model):
    images = torch.rand(1, 3, 7, 8)
    assert not torch.allclose(model(images).reconstruction, tiny(attention_window_size=None)(images).reconstruction)


@torch.no_grad()
def test_training_looks_at_the_whole_image():
    images = torch.rand(1, 3, 9, 12)
    whole = tiny(attention_window_size=None)(images).reconstruction
    torch.testing.assert_close(tiny().train()(images).reconstruction, whole, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("length", "starts"), [(5, [0]), (16, [0]), (17, [0, 1]), (40, [0, 12, 24]), (50, [0, 12, 24, 34])]
)
def test_windows_start_where_the_authors_let_them(length, starts):
    assert window_starts(length, min(16, length)) == starts


def test_equal_windows_average_to_what_they_were_cut_from():
    image = torch.rand(2, 3, 9, 11)
    corners = [(y, x) for y in window_starts(9, 4) for x in window_starts(11, 4)]
    windows = torch.stack([image[:, :, y : y + 4, x : x + 4] for y, x in corners], 1)
    torch.testing.assert_close(averaged_windows(windows, corners, (9, 11)), image)


@torch.no_grad()
def test_sparse_attention_has_zeros_and_softmax_sums_to_one():
    images = torch.rand(2, 3, 8, 8)
    sparse = tiny()(images, output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in sparse.attentions] == [
        (2, 4, 2, 8, 8)
    ] * 3  # (batch, windows, heads, channels, channels)
    assert [tuple(x.shape) for x in sparse.hidden_states] == [(2, 8, 8, 16)] * 3
    assert (sparse.attentions[0] == 0).any()
    dense = tiny(attention_act="softmax")(images, output_attentions=True).attentions[0]
    torch.testing.assert_close(dense.sum(-1), torch.ones(dense.shape[:-1]))


def test_the_pipeline_enlarges_in_tiles_that_do_not_show():
    model = tiny()
    start_as_interpolation(model)
    upscale = pipeline("image-to-image", model=model, image_processor=DLGSANetImageProcessor())
    image = photograph("flower").crop((100, 100, 148, 140))
    whole, tiles = (np.asarray(upscale(image, tile_size=size), dtype=float) for size in (0, 32))
    assert whole.shape == (80, 96, 3)
    assert 10 * np.log10(255**2 / np.mean((whole - tiles) ** 2)) > 50


def test_labels_give_the_mean_absolute_error(model):
    images, labels = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 10, 10)
    outputs = model(images, labels=labels)
    torch.testing.assert_close(outputs.loss, (outputs.reconstruction - labels).abs().mean())


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 1, 8, 8), "(1, 1, 8, 8)"), ((3, 8, 8), "(3, 8, 8)"), ((1, 3, 0, 8), "no pixels")],
)
def test_a_wrong_input_is_named(model, shape, message):
    with pytest.raises(ValueError) as error:
        model(torch.rand(shape))
    assert message in str(error.value)


def test_labels_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match="shape of the reconstruction"):
        model(torch.rand(1, 3, 8, 8), labels=torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    "field",
    [
        {"hidden_size": 0},
        {"num_attention_heads": 7},
        {"filter_group_size": 7},
        {"kernel_size": 4},
        {"depths": []},
        {"depths": [0]},
        {"block_layers": []},
        {"block_layers": ["local", "window"]},
        {"attention_act": "swish"},
        {"attention_window_size": 0},
        {"local_mlp": "GDFN"},
        {"global_mlp_ratio": 0.001},
        {"upsampler": ""},
        {"upscale": 5, "upsampler": "pixelshuffle"},
    ],
    ids=str,
)
def test_an_impossible_configuration_names_the_field(field):
    with pytest.raises(ValueError) as error:
        DLGSANetConfig(**field)
    assert f"`{next(iter(field))}`" in str(error.value)


@given(
    heads=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    block=st.lists(st.sampled_from(["local", "global"]), min_size=1, max_size=3),
    activation=st.sampled_from(["relu", "gelu", "sigmoid", "linear", "softmax"]),
    mlp=st.sampled_from(["gated", "plain"]),
    window=st.sampled_from([None, 1, 4, 6]),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    dynamic=st.booleans(),
    body_norm=st.booleans(),
)
@settings(max_examples=20, derandomize=True, deadline=None)
@torch.no_grad()
def test_any_configuration_takes_any_image(heads, kernel, block, activation, mlp, window, size, dynamic, body_norm):
    model = tiny(
        hidden_size=4 * heads,
        num_attention_heads=heads,
        kernel_size=kernel,
        block_layers=block,
        attention_act=activation,
        local_mlp=mlp,
        attention_window_size=window,
        dynamic_filters=dynamic,
        body_norm=body_norm,
    )
    output = model(torch.rand(1, 3, *size)).reconstruction
    assert output.shape == (1, 3, size[0] * 2, size[1] * 2)
    assert output.isfinite().all()


def test_everything_loads_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    DLGSANetImageProcessor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DLGSANetConfig
    assert type(AutoModelForImageToImage.from_pretrained(tmp_path)) is DLGSANetForImageSuperResolution
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DLGSANetImageProcessor


def test_the_body_alone_loads_from_the_whole(model, tmp_path):
    model.save_pretrained(tmp_path)
    body = DLGSANetModel.from_pretrained(tmp_path)
    torch.testing.assert_close(body.conv_first.weight, model.dlgsanet.conv_first.weight, atol=0, rtol=0)


def test_an_upsampler_that_the_reference_does_not_know_leaves_the_size_alone():
    config = get_converter("dlgsanet").config({"upscale": 4, "upsampler": ""})
    assert (config.upscale, config.upsampler) == (1, "pixelshuffledirect")


def test_the_test_time_window_reaches_sparse_attention_only():
    windows = [
        get_converter("dlgsanet").config({"buildblock_type": kind, "tlc_kernel": 96}).attention_window_size
        for kind in ("sparseedge", "edge", "restormer")
    ]
    assert windows == [96, 48, 48]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"embed_dim": 48}, r"\['embed_dim'\]; it has in_chans"),
        ({"buildblock_type": "swin"}, "`buildblock_type` must be one of sparseedge"),
        ({"idynamic_ffn_type": "MLP"}, "`idynamic_ffn_type` must be one of GDFN"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_known_ones(argument, message):
    with pytest.raises(ValueError, match=message):
        get_converter("dlgsanet").config(argument)


def test_a_checkpoint_of_another_size_is_one_error():
    with pytest.raises(ConversionError, match=r"missing: dlgsanet\.conv_first\.weight"):
        convert_checkpoint("dlgsanet", {"overlap.weight": torch.zeros(2)}, {"dim": 12, "groups": 1, "blocks": 1})
