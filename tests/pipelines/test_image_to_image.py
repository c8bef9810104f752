"""`pipeline("image-to-image")`: what goes in, what comes out, and that tiles do not show."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution, pipeline
from transformers.models.swin2sr.image_processing_pil_swin2sr import Swin2SRImageProcessorPil

from hf_ext.catalog import METHODS
from hf_ext.data.photos import photograph
from hf_ext.models.hat import HatConfig, HatForImageSuperResolution, HatImageProcessor
from hf_ext.pipelines.tiling import tiled
from tests.tiny import TINY

PHOTO = photograph("flower").crop((100, 100, 150, 140))


def build(**changes):
    config, _ = TINY["hat"]()
    torch.manual_seed(0)
    model = HatForImageSuperResolution(HatConfig(**{**config.to_diff_dict(), **changes})).eval()
    processor = HatImageProcessor(do_convert_rgb=model.config.num_channels == 3)
    return pipeline("image-to-image", model=model, image_processor=processor)


@pytest.fixture(scope="module")
def upscale():
    return build()


@pytest.fixture(scope="module")
def expected(upscale):
    return np.asarray(upscale(PHOTO))


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a) / 255.0 - np.asarray(b) / 255.0) ** 2) + 1e-12)


def test_a_pil_image_comes_back_enlarged(upscale):
    image = upscale(PHOTO)
    assert (image.size, image.mode) == ((100, 80), "RGB")


@pytest.mark.parametrize("kind", ["path", "str", "uint8", "float", "four channels"])
def test_every_kind_of_source_gives_the_same(upscale, expected, kind, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    pixels = np.asarray(PHOTO)
    source = {
        "path": tmp_path / "photo.png",
        "str": str(tmp_path / "photo.png"),
        "uint8": pixels,
        "float": pixels / 255,
        "four channels": np.concatenate([pixels, np.full((40, 50, 1), 255, np.uint8)], 2),
    }[kind]
    assert np.array_equal(upscale(source), expected)


def test_a_gray_array_is_a_gray_image(upscale):
    gray = np.asarray(PHOTO.convert("L"))
    assert np.array_equal(upscale(gray), upscale(PHOTO.convert("L")))
    assert np.array_equal(upscale(gray[..., None]), upscale(gray))


def test_transparency_is_composited_onto_white(upscale):
    assert np.array_equal(upscale(Image.new("RGBA", (9, 7))), upscale(Image.new("RGB", (9, 7), "white")))


def test_a_photograph_lying_on_its_side_is_turned(upscale, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "turned.png", exif=exif)
    assert upscale(str(tmp_path / "turned.png")).size == (80, 100)


def test_a_batch_of_different_sizes_equals_one_by_one(upscale):
    images = [PHOTO, PHOTO.crop((0, 0, 17, 9)), PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for together, alone in zip(upscale(images, batch_size=3), upscale(images)):
        assert together.size == alone.size
        assert np.abs(np.asarray(together, int) - np.asarray(alone, int)).max() <= 1


def test_one_pixel(upscale):
    assert upscale(np.zeros((1, 1, 3), np.uint8)).size == (2, 2)


def test_a_model_of_gray_images_returns_gray_images():
    image = build(num_channels=1)(PHOTO)
    assert (image.size, image.mode) == ((100, 80), "L")


def test_upstreams_swin2sr_runs_in_it_and_loses_its_padding():
    torch.manual_seed(0)
    config = Swin2SRConfig(embed_dim=12, depths=[2], num_heads=[2], window_size=4, upscale=2)
    model = Swin2SRForImageSuperResolution(config).eval()
    enlarge = pipeline("image-to-image", model=model, image_processor=Swin2SRImageProcessorPil())
    assert enlarge(PHOTO).size == (100, 80)
    assert enlarge(PHOTO, tile_size=24, tile_overlap=8).size == (100, 80)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "'nowhere.png' cannot be read as an image"),
        ("http://127.0.0.1:9/photo.png", r"'http://127\.0\.0\.1:9/photo\.png' cannot be read"),
        (__file__, "cannot be read as an image"),
        (7, "not a int"),
        (np.zeros((4, 4, 2)), r"not \(4, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"not \(0, 4, 3\)"),
        (np.full((4, 4, 3), np.nan), "without NaN"),
        (np.full((4, 4, 3), 300), r"not \[300, 300\]"),
    ],
)
def test_what_is_no_image_is_refused(upscale, source, message):
    with pytest.raises(ValueError, match=message):
        upscale(source)


def test_a_cut_off_file_is_refused(upscale, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.png' cannot be read as an image"):
        upscale(str(tmp_path / "cut.png"))


@pytest.mark.parametrize(("tile_size", "tile_overlap"), [(-1, 0), (32, -1), (32, 17)])
def test_impossible_tiles_are_refused(upscale, tile_size, tile_overlap):
    with pytest.raises(ValueError, match="tile"):
        upscale(PHOTO, tile_size=tile_size, tile_overlap=tile_overlap)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile_size=st.integers(1, 40),
    share=st.floats(0, 0.5),
    multiple=st.sampled_from([1, 4]),
)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_tiles_of_what_changes_nothing_are_the_image(height, width, tile_size, share, multiple):
    overlap = int(tile_size * share) // multiple * multiple
    images = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    output = tiled(
        lambda tile: tile.repeat_interleave(2, 2).repeat_interleave(2, 3), images, tile_size, overlap, multiple
    )
    expected = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", range(11))
def test_any_overlap_adds_up(overlap):
    images = torch.rand(1, 1, 50, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tiled(lambda tile: tile, images, 20, overlap), images)


def test_no_tile_is_larger_than_asked_for_and_all_start_at_the_multiple():
    seen = []
    position = torch.stack(torch.meshgrid(torch.arange(100.0), torch.arange(130.0), indexing="ij"))[None]
    tiled(lambda tile: seen.append((tile.shape[2:], tile[0, :, 0, 0])) or tile, position, 30, 8, multiple=8)
    assert max(max(shape) for shape, _ in seen) == 32
    assert all((start % 8 == 0).all() for _, start in seen)


def test_a_bar_counts_the_tiles(monkeypatch):
    bars = []
    monkeypatch.setattr("hf_ext.pipelines.tiling.tqdm", lambda tiles, **_: bars.append(len(tiles)) or tiles)
    tiled(lambda tile: tile, torch.rand(1, 1, 20, 10), 10, 0)
    assert bars == [2]


def test_tiles_do_not_show_at_the_default_overlap(upscale):
    """The default is to cut into tiles of 256 with 64 shared; the same in small."""
    photo = photograph("flower").crop((200, 100, 360, 220))
    assert psnr(upscale(photo, tile_size=64), upscale(photo, tile_size=0)) > 50


def test_large_images_are_cut_by_default_and_it_does_not_show():
    if not (METHODS["hat"].card / "model.safetensors").is_file():
        pytest.skip("the card's model is not trained yet")
    upscale = pipeline("image-to-image", str(METHODS["hat"].card))
    photo = photograph("flower").crop((100, 20, 500, 400))  # 400 x 380, just above the limit
    sizes = []
    hook = upscale.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["pixel_values"].shape[2:]), with_kwargs=True
    )
    image = upscale(photo)
    hook.remove()
    assert len(sizes) == 4
    assert max(max(size) for size in sizes) == 256
    assert psnr(image, upscale(photo, tile_size=0)) > 50
