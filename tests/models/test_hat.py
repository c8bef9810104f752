"""HAT: published sizes, any image size, the window machinery, and clear answers to mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.models.hat import HatConfig, HatForImageSuperResolution, HatImageProcessor, HatModel
from hf_ext.models.hat.modeling_hat import HatTables
from tests.tiny import TINY

PARAMETERS = {
    "hat-s-x2": 9_473_471,
    "hat-s-x3": 9_658_111,
    "hat-s-x4": 9_621_183,
    "hat-x2": 20_624_795,
    "hat-x3": 20_809_435,
    "hat-x4": 20_772_507,
    "hat-l-x2": 40_698_863,
    "hat-l-x3": 40_883_503,
    "hat-l-x4": 40_846_575,
}


def tiny(**changes):
    config, _ = TINY["hat"]()
    torch.manual_seed(0)
    return HatForImageSuperResolution(HatConfig(**{**config.to_diff_dict(), **changes})).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = HatForImageSuperResolution(HatConfig.from_preset(name))
    assert model.num_parameters() == PARAMETERS[name]


def test_presets_are_all_covered():
    assert set(HatConfig.PRESETS) == set(PARAMETERS)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (4, 4), (5, 8), (13, 7)])
@torch.no_grad()
def test_any_size_comes_out_enlarged(model, size):
    output = model(torch.rand(1, 3, *size)).reconstruction
    assert output.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert output.isfinite().all()


@torch.no_grad()
def test_padding_is_the_authors_reflection(model):
    images = torch.rand(2, 3, 10, 7)
    padded = torch.nn.functional.pad(images, (0, 1, 0, 2), mode="reflect")
    expected = model(padded).reconstruction[:, :, :20, :14]
    torch.testing.assert_close(model(images).reconstruction, expected, atol=0, rtol=0)


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
@torch.no_grad()
def test_every_scale(upscale):
    assert tiny(upscale=upscale)(torch.rand(1, 3, 4, 4)).reconstruction.shape[-1] == 4 * upscale


@torch.no_grad()
def test_one_channel_images():
    assert tiny(num_channels=1)(torch.rand(1, 1, 6, 6)).reconstruction.shape == (1, 1, 12, 12)


@torch.no_grad()
def test_absolute_positions_at_another_size():
    assert tiny(use_absolute_embeddings=True)(torch.rand(1, 3, 9, 30)).reconstruction.shape == (1, 3, 18, 60)


@torch.no_grad()
def test_the_shift_mask_is_the_authors():
    """Regions of a shifted image, drawn on the whole of it and cut into windows, as the reference does for each size."""
    size, height, width = 4, 12, 8
    regions = torch.zeros(height, width)
    slices = (slice(0, -size), slice(-size, -size // 2), slice(-size // 2, None))
    for i, row in enumerate(slices):
        for j, column in enumerate(slices):
            regions[row, column] = 3 * i + j
    windows = regions.view(3, size, 2, size).transpose(1, 2).reshape(3, 2, -1)
    expected = torch.where(windows[..., :, None] != windows[..., None, :], -100.0, 0.0)
    masks = HatTables.make(size, size).shift_masks[:, :, 0]
    for i in range(3):
        for j in range(2):
            assert torch.equal(masks[int(i == 2), int(j == 1)], expected[i, j])


def test_overlap_indices_are_a_permutation_that_wraps_round():
    index = HatTables.make(16, 24).overlap_index
    assert index.unique().tolist() == list(range(39**2))
    assert index[0, 0] == (-7 * 39 - 7) % 39**2  # -280 in the reference


@torch.no_grad()
def test_windows_that_touch_no_border_are_the_same_in_a_larger_image():
    """Shifted windows are masked at the image border only: far from it a crop and the image agree but for channel attention."""
    model = tiny(conv_scale=1e-6)
    large = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    inner = model(large[:, :, :48, :48]).reconstruction[:, :, :40, :40]
    torch.testing.assert_close(inner, model(large).reconstruction[:, :, :40, :40], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attentions_and_hidden_states_on_request():
    model = tiny()
    model.set_attn_implementation("eager")
    outputs = model(torch.rand(2, 3, 8, 12), output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in outputs.hidden_states] == [(2, 8, 12, 16)] * 3
    assert [tuple(x.shape) for x in outputs.attentions] == [
        (2, 6, 2, 16, 16),  # (batch, windows, heads, queries, keys)
        (2, 6, 2, 16, 16),
        (2, 6, 2, 16, 36),
        (2, 6, 4, 16, 16),
        (2, 6, 4, 16, 36),
    ]
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_labels_give_the_mean_absolute_error(model):
    images, labels = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 10, 10)
    outputs = model(images, labels=labels)
    torch.testing.assert_close(outputs.loss, (outputs.reconstruction - labels).abs().mean())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), "(1, 1, 8, 8)"),
        ((3, 8, 8), "(3, 8, 8)"),
        ((1, 4, 8, 8), "(1, 4, 8, 8)"),
        ((1, 3, 0, 8), "no pixels"),
    ],
)
def test_a_wrong_input_is_named(model, shape, message):
    with pytest.raises(ValueError) as error:
        model(torch.rand(shape))
    assert message in str(error.value)


def test_nothing_is_refused(model):
    with pytest.raises(ValueError, match="not nothing"):
        model()


def test_labels_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match="shape of the reconstruction"):
        model(torch.rand(1, 3, 8, 8), labels=torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    "field",
    [
        {"upsampler": ""},
        {"upsampler": "nearest+conv"},
        {"resi_connection": "3conv"},
        {"upscale": 5},
        {"upscale": 0},
        {"hidden_size": 181},
        {"num_attention_heads": [6]},
        {"depths": []},
        {"depths": [0] * 6},
        {"overlap_ratio": 0.2},
        {"overlap_ratio": -0.5},
        {"squeeze_factor": 500},
        {"image_size": 16},
        {"drop_path_rate": 1.0},
        {"window_size": 0},
    ],
    ids=str,
)
def test_an_impossible_configuration_names_the_field(field):
    with pytest.raises(ValueError) as error:
        HatConfig(**field)
    assert f"`{next(iter(field))}`" in str(error.value)


@given(
    heads=st.integers(1, 3),
    window=st.sampled_from([2, 4, 7]),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    upscale=st.sampled_from([1, 2, 3]),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    identity=st.booleans(),
)
@settings(max_examples=12, derandomize=True, deadline=None)
@torch.no_grad()
def test_any_configuration_takes_any_image(heads, window, depths, upscale, size, identity):
    model = tiny(
        hidden_size=4 * heads,
        depths=depths,
        num_attention_heads=[heads] * len(depths),
        window_size=window,
        overlap_ratio=2 / window,
        upscale=upscale,
        resi_connection="identity" if identity else "1conv",
    )
    output = model(torch.rand(1, 3, *size)).reconstruction
    assert output.shape == (1, 3, size[0] * upscale, size[1] * upscale)
    assert output.isfinite().all()


def test_everything_loads_through_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    HatImageProcessor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is HatConfig
    assert type(AutoModelForImageToImage.from_pretrained(tmp_path)) is HatForImageSuperResolution
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is HatImageProcessor


def test_the_body_alone_loads_from_the_whole(model, tmp_path):
    model.save_pretrained(tmp_path)
    body = HatModel.from_pretrained(tmp_path)
    torch.testing.assert_close(body.conv_first.weight, model.hat.conv_first.weight, atol=0, rtol=0)


def test_the_reference_defaults_are_not_ours():
    with pytest.raises(ValueError, match="upsampler"):  # the authors' class defaults to one that does nothing
        get_converter("hat").config({"window_size": 8})


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['embed_dims'\]; it has img_size"):
        get_converter("hat").config({"embed_dims": 180})


def test_a_checkpoint_of_another_size_is_one_error():
    arguments = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "upsampler": "pixelshuffle"}
    arguments |= {"squeeze_factor": 4}
    with pytest.raises(ConversionError, match=r"missing: hat\.conv_first\.weight"):
        convert_checkpoint("hat", {"conv_firs.weight": torch.zeros(2)}, arguments)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_the_processor_makes_rgb_of_every_mode(mode):
    pixel_values = HatImageProcessor()(Image.new(mode, (9, 6)), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 6, 9)


def test_the_processor_composites_transparency_onto_white():
    assert (HatImageProcessor()(Image.new("RGBA", (9, 6)), return_tensors="pt").pixel_values == 1).all()


def test_the_processor_scales_to_one():
    image = np.full((9, 6, 3), 51, np.uint8)
    pixel_values = HatImageProcessor()(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, torch.full((1, 3, 9, 6), 0.2))
