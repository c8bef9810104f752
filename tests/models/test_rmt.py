"""RMT: sizes, Manhattan self-attention whole and decomposed, folding, token labels, the backbone, and what it refuses."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoBackbone, AutoImageProcessor

from hf_ext.convert import convert_checkpoint
from hf_ext.models.rmt import RMTBackbone, RMTConfig, RMTForImageClassification, RMTImageProcessor, RMTModel
from hf_ext.models.rmt.modeling_rmt import (
    RMTAttention,
    RMTDecomposedAttention,
    RMTStage,
    log_decays,
    mix,
    phases,
    random_box,
    rotate,
)
from tests.models.vision import (
    count_parameters,
    image,
    onnx_logits,
    subject,
    tiny,
    train_under_deformable_detr,
    train_under_mask2former,
    train_under_upernet,
    used,
)
from tests.passport import CHECKS
from tests.tiny import TINY

PARAMETERS = {
    "rmt-tiny": 14_334_216,
    "rmt-small": 26_967_240,
    "rmt-base": 54_154_896,
    "rmt-large": 95_464_864,
    "rmt-small-token-label": 27_992_240,
    "rmt-base-token-label": 54_667_896,
    "rmt-large-token-label": 96_105_864,
}


def config(**overrides) -> RMTConfig:
    fields = TINY["rmt"]()[0].to_diff_dict()
    fields.pop("out_indices")  # follows from out_features
    return RMTConfig(**(fields | overrides))


@pytest.mark.parametrize("name", RMTConfig.PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert count_parameters(RMTForImageClassification, RMTConfig.from_preset(name)) == PARAMETERS[name]


def test_the_authors_token_label_class_reads_the_last_stage_also_in_the_small_model():
    small = RMTConfig.from_preset("rmt-small", token_label=True)
    assert count_parameters(RMTForImageClassification, small) == 27_480_240


@torch.no_grad()
def test_later_heads_see_further_by_the_decay_of_the_paper():
    decays = log_decays(4, 2, 6, torch.device("cpu"))
    torch.testing.assert_close(decays.exp(), torch.tensor([1 - 2 ** (-2 - 6 * h / 4) for h in range(4)]))


@torch.no_grad()
def test_rotation_turns_pairs_by_their_phase():
    x = image(5, 8)[0, :, None].transpose(0, 1).reshape(1, 5, 3, 8)
    angles = phases(5, 4, 10000, torch.device("cpu"))
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    tables = type("Tables", (), {"cosine": angles.cos(), "sine": angles.sin()})
    torch.testing.assert_close(rotate(x, tables), expected)
    assert angles[0].eq(0).all() and angles[2, 0, 0] == 2


def naive_softmax(query, key, value, decay, distance):
    """One head: weights exp(q.k / sqrt(d)) * gamma ** distance, renormalised."""
    weights = (query @ key.T * query.shape[-1] ** -0.5).exp() * decay.exp() ** distance
    return weights / weights.sum(-1, keepdim=True) @ value


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_whole_attention_equals_a_loop_over_heads_with_gamma_to_the_manhattan_distance(implementation):
    height, width, heads = 3, 4, 2
    attention, decays, query, key, value = attention_inputs(RMTAttention, implementation, height * width, heads)
    biases = RMTAttention.make_biases(height, width, decays)
    output = attention.attend(query, key, value, (height, width), biases)
    place = [(y, x) for y in range(height) for x in range(width)]
    distance = torch.tensor([[abs(a - c) + abs(b - d) for c, d in place] for a, b in place])
    for h in range(heads):
        expected = naive_softmax(query[0, :, h], key[0, :, h], value[0, :, h], decays[h], distance)
        torch.testing.assert_close(output[0, :, h], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_decomposed_attention_equals_a_loop_along_rows_and_then_columns(implementation):
    height, width, heads = 3, 4, 2
    attention, decays, query, key, value = attention_inputs(RMTDecomposedAttention, implementation, 12, heads)
    biases = RMTDecomposedAttention.make_biases(height, width, decays)
    output = attention.attend(query, key, value, (height, width), biases).unflatten(1, (height, width))
    query, key, value = (x.unflatten(1, (height, width)) for x in (query, key, value))
    distance = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    for h in range(heads):
        rows = torch.stack(
            [
                naive_softmax(query[0, y, :, h], key[0, y, :, h], value[0, y, :, h], decays[h], distance)
                for y in range(3)
            ]
        )
        for x in range(width):
            expected = naive_softmax(query[0, :, x, h], key[0, :, x, h], rows[:, x], decays[h], distance[:3, :3])
            torch.testing.assert_close(output[0, :, x, h], expected, atol=1e-5, rtol=1e-5)


def attention_inputs(attention_class, implementation, positions, heads):
    settings = config(hidden_sizes=[8, 16, 24, 32])
    settings._attn_implementation = implementation
    attention = attention_class(settings, stage=0).eval()
    decays = log_decays(heads, 2, 4, torch.device("cpu"))
    return attention, decays, *(image(positions, heads, seed=s, channels=4).permute(0, 2, 3, 1) for s in range(3))


@torch.no_grad()
def test_on_a_map_of_one_row_both_attentions_are_the_same():
    attention, decays, query, key, value = attention_inputs(RMTAttention, "sdpa", 6, 2)
    decomposed = attention_inputs(RMTDecomposedAttention, "sdpa", 6, 2)[0]
    whole = attention.attend(query, key, value, (1, 6), RMTAttention.make_biases(1, 6, decays))
    parts = decomposed.attend(query, key, value, (1, 6), RMTDecomposedAttention.make_biases(1, 6, decays))
    torch.testing.assert_close(whole, parts)


def test_tables_of_a_bfloat16_model_are_computed_in_float32():
    stage = RMTStage(config(), 0, [0.0]).bfloat16()
    tables = stage.tables(torch.zeros(1, 8, 40, 50, dtype=torch.bfloat16))
    exact = RMTStage(config(), 0, [0.0]).tables(torch.zeros(1, 8, 40, 50))
    torch.testing.assert_close(tables.sine, exact.sine.bfloat16())


@torch.no_grad()
def test_weights_are_recorded_for_whole_and_decomposed_attention():
    model = tiny("rmt", "AutoModel")
    model.set_attn_implementation("eager")
    attentions = model(image(64, 32), output_attentions=True).attentions
    shapes = [(1, 16, 2, 8, 8), (1, 8, 2, 16, 16), (1, 8, 2, 4, 4), (1, 4, 2, 8, 8)]
    assert [tuple(x.shape) for x in attentions[:4]] == shapes
    assert [tuple(x.shape) for x in attentions[4:]] == [(1, 1, 3, 8, 8)] * 2 + [(1, 1, 4, 2, 2)]


@torch.no_grad()
@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageClassification", "AutoBackbone"])
def test_fusing_changes_no_output(auto_class):
    model = tiny("rmt", auto_class)
    fused = deepcopy(model).fuse()
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for ours, expected in zip(fused(image(40, 64)).to_tuple(), model(image(40, 64)).to_tuple()):
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, expected))):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_fused_form_saves_and_loads(tmp_path):
    model = tiny("rmt", "AutoModelForImageClassification").fuse()
    model.save_pretrained(tmp_path)
    loaded = RMTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.fused
    torch.testing.assert_close(loaded(image(40, 40)).logits, model(image(40, 40)).logits)


@torch.no_grad()
def test_the_fused_form_runs_in_onnxruntime():
    model = tiny("rmt", "AutoModelForImageClassification").fuse()
    torch.testing.assert_close(onnx_logits(model, image(40, 40)), model(image(40, 40)).logits, atol=1e-5, rtol=1e-4)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    decomposed=st.lists(st.booleans(), min_size=4, max_size=4),
    start=st.floats(0.5, 4),
)
@torch.no_grad()
def test_any_resolution_works_in_either_form(height, width, decomposed, start):
    model = RMTBackbone(config(decomposed=decomposed, decay_starts=[start] * 4)).eval()
    for stride, channels, feature_map in zip((4, 8, 16, 32), (8, 16, 24, 32), model(image(height, width)).feature_maps):
        assert feature_map.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert feature_map.isfinite().all()


def token_label_model(**overrides) -> RMTForImageClassification:
    torch.manual_seed(0)
    return used(RMTForImageClassification(config(token_label=True, **overrides))).eval()


@torch.no_grad()
@pytest.mark.parametrize("projected", [False, True])
def test_token_labels_add_half_of_the_most_confident_position(projected):
    model = token_label_model(token_label_projected=projected)
    output = model(image(64, 96))
    assert output.aux_logits.shape == (1, 6, 4)
    torch.testing.assert_close(output.logits, output.cls_logits + 0.5 * output.aux_logits.max(1).values)
    torch.testing.assert_close(model.fuse()(image(64, 96)).logits, output.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mix_token", [False, True])
def test_training_with_token_labels_reaches_every_parameter(mix_token):
    model = token_label_model(mix_token=mix_token).train()
    torch.manual_seed(1)
    model(image(64, 96, batch=2), labels=torch.tensor([0, 3])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_the_loss_of_token_labels_is_the_authors_sum():
    model = token_label_model()
    labels, maps = torch.tensor([0, 3]), torch.softmax(image(6, 4, batch=2, channels=1)[:, 0], -1)
    output = model(image(64, 96, batch=2), labels=labels, token_labels=maps)
    dense = -(maps * output.aux_logits.log_softmax(-1)).sum(-1).mean()
    expected = nn.functional.cross_entropy(output.cls_logits, labels) + 0.5 * dense
    torch.testing.assert_close(output.loss, expected)


def test_mixing_twice_gives_the_images_back():
    torch.manual_seed(3)
    mask = random_box(3, 4, torch.device("cpu"))
    maps = image(26, 33, batch=3)
    mixed = mix(maps, mask, scale=8)
    assert mask.any() and not mask.all()
    assert torch.equal(mix(mixed, mask, scale=8), maps)
    inside = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(mixed[0, :, :24, :32][:, inside], maps[2, :, :24, :32][:, inside])
    assert torch.equal(mixed[..., 24:, :], maps[..., 24:, :])


@torch.no_grad()
def test_conversion_finds_out_what_the_token_labels_head_reads():
    arguments = {
        "embed_dims": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_heads": [2, 2, 3, 4],
        "projection": 48,
        "num_classes": 4,
        "token_label": True,
    }
    for width in (32, 48):
        head = {"proj.weight": torch.zeros(48, 32), "aux_head.weight": torch.zeros(4, width)}
        with pytest.raises(ValueError) as error:
            convert_checkpoint("rmt", head, arguments)
        assert "token_classifier.weight" not in str(error.value)


@torch.no_grad()
def test_a_backbone_loads_a_classifiers_weights(tmp_path):
    classifier = tiny("rmt", "AutoModelForImageClassification")
    classifier.save_pretrained(tmp_path)
    backbone, info = RMTBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("norms.") for name in info["missing_keys"]) and not info["unexpected_keys"]
    last = nn.functional.layer_norm(
        classifier.rmt(image(40, 40)).last_hidden_state.permute(0, 2, 3, 1), (32,), eps=1e-5
    )
    torch.testing.assert_close(backbone(image(40, 40)).feature_maps[-1].permute(0, 2, 3, 1), last, atol=1e-5, rtol=1e-5)


def test_auto_backbone_returns_the_maps_asked_for():
    backbone = AutoBackbone.from_config(config(out_features=["stem", "stage3"])).eval()
    assert type(backbone) is RMTBackbone and backbone.channels == [8, 24] and list(backbone.norms) == ["stage3"]
    assert [tuple(x.shape) for x in backbone(image(48, 48)).feature_maps] == [(1, 8, 12, 12), (1, 24, 3, 3)]


@pytest.mark.parametrize(
    "check", ["save_and_load", "gradients", "gradient_checkpointing", "bfloat16", "export", "lora", "distributed"]
)
def test_the_backbone_passes_the_passport_too(check):
    CHECKS[check](subject("rmt", "AutoBackbone"))


def test_upstreams_segmenter_trains_on_it():
    train_under_upernet(config())


def test_upstreams_detector_trains_on_it():
    train_under_deformable_detr(config())


def test_upstreams_mask_classifier_trains_on_it():
    train_under_mask2former(config())


def test_conversion_lists_the_arguments_there_are():
    with pytest.raises(ValueError, match=r"no arguments \['depth'\]; it has in_chans, num_classes"):
        convert_checkpoint("rmt", {}, {"depth": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 1, 2]}, "4 entries"),
        ({"decay_starts": [2, 2, 0, 2]}, "`decay_starts` must be positive"),
        ({"decay_ranges": [2, 2, -1, 2]}, "`decay_ranges` must not be negative"),
        ({"hidden_sizes": [8, 16, 21, 32]}, "even width"),
        ({"hidden_sizes": [9, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}, "must be even"),
        ({"token_label_projected": True}, "there is none"),
        ({"drop_path_rate": 1.5}, r"\[0, 1\)"),
        ({"projection_size": 0}, "`projection_size` must be positive"),
    ],
)
def test_impossible_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "not nothing"),
        (torch.zeros(3, 48, 48), r"shape \(3, 48, 48\)"),
        (torch.zeros(1, 1, 48, 48), r"\(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 0, 48), "holds no pixels"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        RMTModel(config()).eval()(pixel_values)


def test_the_processor_is_found_for_the_configuration(tmp_path):
    config().save_pretrained(tmp_path)
    RMTImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is RMTImageProcessor
