"""`hf-ext run --explain`: the map stands where the model looks, for every kind of attention there is."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTImageProcessor,
)

from hf_ext.cli.explain import attention_map, explain, feature_map, grid, heat_map, overlay
from tests.models.vision import tiny
from tests.tiny import TINY

VISION = ("t2t_vit", "crossvit", "rmt", "nextvit", "dualtoken_vit", "dit_router", "efficientformer", "slab", "fmvit")


def photograph(size: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size + 8, 3), dtype=np.uint8))


def processor(size: int) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size})


def looking_at(place: int, tokens: int = 10, layers: int = 2) -> list[torch.Tensor]:
    """Attentions (1, heads, tokens, tokens) of two heads, in which every token looks at one."""
    attention = torch.zeros(1, 2, tokens, tokens)
    attention[..., place] = 1
    return [attention] * layers


def brightest(heat: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(heat.argmax()), heat.shape))


@pytest.mark.parametrize("slug", VISION)
def test_every_attention_model_shows_where_it_looks(slug):
    size = TINY[slug]()[1]["pixel_values"].shape[-1]
    shown = explain(tiny(slug, "AutoModelForImageClassification"), processor(size), photograph())
    assert shown.size == (size, size) and len(set(shown.getdata())) > size


@pytest.mark.parametrize(
    "model",
    [
        SwinForImageClassification(
            SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
        ),
        ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    ],
    ids=["windows", "convolutions"],
)
def test_models_without_attention_over_the_picture_show_their_features(model):
    assert explain(model.eval(), processor(32), photograph()).size == (32, 32)


def test_command_prints_the_classes_and_writes_the_picture(hf_ext, here, tmp_path):
    model = tiny("efficientformer", "AutoModelForImageClassification")
    model.save_pretrained("model")
    processor(40).save_pretrained("model")
    photograph().save("cat.png")
    outcome = hf_ext("run", "model", "--input", "cat.png", "--explain", "looks.png")
    assert outcome.status == 0, outcome.err
    assert "LABEL_" in outcome.out and "looks.png" in outcome.out
    assert Image.open("looks.png").size == (40, 40)


def test_class_token_is_followed_to_the_place_it_looks_at():
    assert brightest(attention_map(looking_at(1 + 5), (48, 48))) == (1, 2)


def test_rollout_goes_through_the_layers():
    """The class token looks at place 8 in the last layer; that token looked at place 2 before."""
    first, last = torch.eye(10).repeat(1, 2, 1, 1), torch.eye(10).repeat(1, 2, 1, 1)
    first[..., 8, :] = 0
    first[..., 8, 2] = 1
    last[..., 0, :] = 0
    last[..., 0, 8] = 1
    heat = attention_map([first, last], (48, 48))
    assert heat.flatten()[1] > 0 and heat.flatten()[7] > 0 and heat.flatten()[3] == 0


def test_attention_without_a_class_token_is_what_the_places_receive():
    assert brightest(attention_map(looking_at(7, tokens=9), (48, 48))) == (2, 1)


def test_fewer_keys_than_queries_make_a_coarser_map():
    assert attention_map([torch.rand(1, 2, 36, 4)], (48, 48)).shape == (2, 2)


def test_attention_within_windows_leaves_the_map_to_the_features():
    features = torch.zeros(1, 5, 4, 4)
    features[..., 3, 1] = 1
    output = {"attentions": (torch.rand(16, 2, 9, 9),), "hidden_states": (torch.rand(1, 5, 8, 8), features)}
    assert brightest(heat_map(output, (32, 32))) == (3, 1)


def test_tokens_make_a_map_without_their_class_token():
    tokens = torch.zeros(1, 7, 4)
    tokens[0, 1 + 4] = 1
    assert brightest(feature_map([tokens], (20, 30))) == (1, 1)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (196, (224, 224), (0, 14, 14)),
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), (2, 14, 14)),
        (24, (64, 96), (0, 4, 6)),
        (7, (64, 64), None),
        (1, (64, 64), None),
    ],
)
def test_tokens_are_laid_out_in_the_shape_of_the_picture(tokens, size, expected):
    assert grid(tokens, size) == expected


def test_overlay_is_warmest_where_the_map_is_largest():
    shown = np.asarray(overlay(np.full((8, 8, 3), 0.5), torch.eye(2))).astype(int)
    assert shown[0, 0, 0] > shown[0, 7, 0] and shown[0, 7, 2] > shown[0, 0, 2]


def test_even_map_is_drawn_too():
    assert overlay(np.zeros((8, 8, 3)), torch.ones(2, 2)).size == (8, 8)


def test_model_that_returns_nothing_of_places_is_one_clear_error():
    with pytest.raises(ValueError, match="neither attention nor features"):
        heat_map({"logits": torch.zeros(1, 3)}, (32, 32))


def test_other_tasks_are_refused(hf_ext, here):
    outcome = hf_ext("run", here, "--task", "text-generation", "--input", "once", "--explain", "x.png")
    assert "--explain shows where an image classifier looks" in outcome.error
