"""DiT with dynamic token routing: sizes, who is selected, what is skipped, the budget, PVTv2, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoBackbone, AutoImageProcessor, PvtV2Config, PvtV2ForImageClassification

from hf_ext.convert import convert_checkpoint
from hf_ext.models.dit_router import (
    DynamicTokenRoutingBackbone,
    DynamicTokenRoutingConfig,
    DynamicTokenRoutingForImageClassification,
    DynamicTokenRoutingImageProcessor,
    DynamicTokenRoutingModel,
)
from hf_ext.models.dit_router.modeling_dit_router import (
    DynamicTokenRoutingGate,
    DynamicTokenRoutingLayer,
    DynamicTokenRoutingPatchEmbedding,
    Gathered,
    Masked,
)
from tests.models.vision import count_parameters, image, subject, train_under_deformable_detr, train_under_upernet
from tests.passport import CHECKS
from tests.tiny import TINY

PARAMETERS = {
    "dit-router-b0": 5_318_232,
    "dit-router-b1": 20_538_552,
    "dit-router-b2": 31_892_408,
    "dit-router-b3": 51_768_248,
    "dit-router-b4": 69_085_624,
    "dit-router-b5": 88_105_400,
}
GATES = [
    *("stages.0_0", "stages.0_1", "stages.1_1"),
    *("scaling.0_2", "stages.0_2", "stages.1_2", "stages.2_2"),
    *("scaling.0_3", "scaling.1_3", "stages.0_3", "stages.1_3", "stages.2_3", "stages.3_3"),
    *("scaling.0_4", "scaling.1_4", "scaling.2_4"),
]


def config(**overrides) -> DynamicTokenRoutingConfig:
    fields = TINY["dit_router"]()[0].to_diff_dict()
    fields.pop("out_indices")  # follows from out_features
    return DynamicTokenRoutingConfig(**(fields | overrides))


def gates_of(model):
    return [module for module in model.modules() if isinstance(module, DynamicTokenRoutingGate)]


def undecided(model_class=DynamicTokenRoutingForImageClassification, **overrides):
    """A model in eval mode whose gates select some tokens and not others, by large margins."""
    torch.manual_seed(0)
    model = model_class(config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for gate in gates_of(model):
            gate.dense1.weight.normal_(0, 2)
            gate.dense2.weight.normal_(0, 8)
            gate.dense2.bias.zero_()
    return model


def forced(model, bias: float):
    """All gates open (bias > 0) or all closed."""
    with torch.no_grad():
        for gate in gates_of(model):
            gate.dense2.weight.zero_()
            gate.dense2.bias.fill_(bias)
    return model


def run_blocks(model, pixel_values) -> list[torch.nn.Module]:
    """The blocks that a forward pass calls."""
    called = []
    blocks = [module for module in model.modules() if isinstance(module, DynamicTokenRoutingLayer)]
    handles = [block.register_forward_hook(lambda module, *_: called.append(module)) for block in blocks]
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("name", DynamicTokenRoutingConfig.PRESETS)
def test_presets_have_the_number_of_parameters_of_the_definition(name):
    preset = DynamicTokenRoutingConfig.from_preset(name)
    assert count_parameters(DynamicTokenRoutingForImageClassification, preset) == PARAMETERS[name]


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dit-router-b0, dit-router-b1"):
        DynamicTokenRoutingConfig.from_preset("dit-router-b6")


@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    height=st.integers(32, 70),
    width=st.integers(32, 70),
    batch=st.integers(1, 3),
    extra_depth=st.integers(0, 2),
    routing=st.sampled_from(["dynamic", "static"]),
)
def test_gathering_equals_masking_at_any_size(height, width, batch, extra_depth, routing):
    model = undecided(extra_depth=extra_depth)
    pixel_values = image(height, width, batch)
    masked = model(pixel_values, routing=routing)
    with torch.no_grad():
        gathered = model(pixel_values, routing=routing)
    torch.testing.assert_close(gathered.gate_ratios, masked.gate_ratios.detach())
    torch.testing.assert_close(gathered.logits, masked.logits.detach(), atol=1e-4, rtol=1e-4)
    for stride, ours, theirs in zip((4, 8, 16, 32), gathered.feature_maps, masked.feature_maps):
        assert ours.shape[2:] == (-(-height // stride), -(-width // stride))
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-4, rtol=1e-4)


def test_gates_decide_for_each_token():
    with torch.no_grad():
        output = undecided()(image(64, 64, 2))
    assert 0.1 < output.gate_ratios.mean() < 0.9
    assert all(set(gate.unique().tolist()) <= {0.0, 1.0} for gate in output.gates)
    assert [tuple(gate.shape) for gate in output.gates[:4]] == [(2, 16, 16), (2, 16, 16), (2, 8, 8), (2, 16, 16)]


def test_a_token_that_is_not_selected_passes_unchanged():
    model = undecided()
    stage = model.dit_router.encoder.stages["0_0"]
    tokens = torch.randn(2, 64, 8)
    with torch.no_grad():
        output, gate = stage(tokens, (8, 8), "dynamic", gather=True)
    waiting = gate.squeeze(-1) == 0
    assert 0 < waiting.sum() < 128
    assert torch.equal(output[waiting], tokens[waiting])
    assert (output[~waiting] != tokens[~waiting]).any(1).all()


def test_closed_gates_skip_every_stage():
    model = forced(undecided(), bias=-1.0)
    assert run_blocks(model, image(40, 40)) == []
    with torch.no_grad():
        assert model(image(40, 40)).cost_ratio == 0


def test_open_gates_run_every_block_once():
    model = forced(undecided(), bias=1.0)
    assert len(run_blocks(model, image(40, 40))) == 5 + 6  # the diagonal's, and one for each stage above it


def test_a_scaling_edge_computes_the_reached_tokens_only():
    torch.manual_seed(0)
    embedding = DynamicTokenRoutingPatchEmbedding(config(), 0).eval()
    feature_map, reached = torch.randn(2, 8, 7, 9), torch.rand(2, 4, 5) < 0.3
    with torch.no_grad():
        gathered = embedding(feature_map, Gathered(reached))
        masked = embedding(feature_map, Masked(reached.flatten(1).unsqueeze(-1).float()))
    torch.testing.assert_close(gathered, masked, atol=1e-5, rtol=1e-5)


def test_the_gates_are_listed_in_the_order_of_evaluation():
    model = undecided()
    assert model.gate_names == GATES
    assert undecided(DynamicTokenRoutingBackbone).gate_names == GATES
    with torch.no_grad():
        assert len(model(image(40, 40)).gate_ratios) == len(GATES)


def test_the_loss_is_the_tasks_plus_the_routers():
    model = undecided(budget=0.2, router_loss_coef=0.5)
    labels = torch.tensor([1, 3])
    with torch.no_grad():
        output = model(image(40, 40, 2), labels=labels)
    torch.testing.assert_close(output.router_loss, (output.cost_ratio - 0.2) ** 2)
    task = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, task + 0.5 * output.router_loss)


def test_training_moves_the_cost_to_the_budget():
    model = forced(undecided(budget=0.25, router_loss_coef=10.0), bias=1.0).train()
    optimizer = torch.optim.AdamW([p for gate in gates_of(model) for p in gate.parameters()], lr=0.1)
    torch.manual_seed(0)
    for _ in range(20):
        output = model(image(32, 32, 2), labels=torch.tensor([0, 1]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert abs(output.cost_ratio.item() - 0.25) < 0.1


def test_training_samples_the_gates_and_evaluation_does_not():
    gate = DynamicTokenRoutingGate(config(), 8, opened=True)
    tokens = torch.randn(1, 4000, 8)
    with torch.no_grad():
        gate.dense2.weight.zero_()
        gate.dense2.bias.fill_(1.0)
        torch.manual_seed(0)
        assert abs(gate.train()(tokens).mean().item() - torch.tensor(1.0).sigmoid().item()) < 0.03
        assert gate.eval()(tokens).mean() == 1


def test_new_gates_are_open_on_the_diagonal_only():
    with torch.no_grad():
        ratios = DynamicTokenRoutingModel(config()).eval()(image(40, 40)).gate_ratios
    assert ratios.tolist() == [
        float(name in ("stages.0_0", "stages.1_1", "stages.2_2", "stages.3_3")) for name in GATES
    ]


@torch.no_grad()
def test_the_static_path_is_pvt_v2():
    shape = {name: getattr(config(), name) for name in ("hidden_sizes", "num_attention_heads", "mlp_ratios", "depths")}
    pvt = PvtV2ForImageClassification(PvtV2Config(**shape, num_labels=4)).eval()
    for parameter in pvt.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = DynamicTokenRoutingForImageClassification.from_pvt_v2(pvt, budget=0.3)
    assert model.config.budget == 0.3
    output = model(image(40, 56), routing="static")
    torch.testing.assert_close(output.logits, pvt(image(40, 56)).logits, atol=1e-5, rtol=1e-5)
    assert output.gate_ratios.sum() == 4


def test_a_pvt_v2_with_linear_attention_is_refused():
    pvt = PvtV2ForImageClassification(PvtV2Config(linear_attention=True, hidden_sizes=[8, 16, 20, 32], depths=[1] * 4))
    with pytest.raises(ValueError, match="`linear_attention` of the PVTv2 must be False"):
        DynamicTokenRoutingForImageClassification.from_pvt_v2(pvt)


@torch.no_grad()
def test_attentions_cover_all_tokens():
    model = undecided(DynamicTokenRoutingModel)
    model.set_attn_implementation("eager")
    attentions = model(image(32, 32, 2), output_attentions=True).attentions
    assert len(attentions) == 11
    assert attentions[0].shape == (2, 1, 64, 1)


def test_gates_stay_in_float32(tmp_path):
    undecided().save_pretrained(tmp_path)
    model = DynamicTokenRoutingForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for gate in gates_of(model) for parameter in gate.parameters()} == {torch.float32}
    assert model.classifier.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert model(image(40, 40)).logits.isfinite().all()


@torch.no_grad()
def test_a_backbone_loads_a_classifiers_weights(tmp_path):
    classifier = undecided()
    classifier.save_pretrained(tmp_path)
    backbone = DynamicTokenRoutingBackbone.from_pretrained(tmp_path, out_features=["stage2", "stage4"])
    assert backbone.channels == [12, 24]
    expected = classifier(image(40, 40)).feature_maps
    for ours, theirs in zip(backbone(image(40, 40)).feature_maps, (expected[1], expected[3])):
        torch.testing.assert_close(ours, theirs)


def test_auto_backbone_finds_it():
    assert type(AutoBackbone.from_config(config())) is DynamicTokenRoutingBackbone


@pytest.mark.parametrize("check", ["save_and_load", "gradients", "gradient_checkpointing", "bfloat16"])
def test_the_backbone_passes_the_passport_too(check):
    CHECKS[check](subject("dit_router", "AutoBackbone"))


def test_upstreams_segmenter_trains_on_it():
    train_under_upernet(config())


def test_upstreams_detector_trains_on_it():
    train_under_deformable_detr(config())


def test_conversion_lists_the_arguments_there_are():
    with pytest.raises(ValueError, match=r"no arguments .'depth'.; it has num_channels, hidden_sizes"):
        convert_checkpoint("dit_router", {}, {"depth": [2, 2, 2, 2]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 1, 1]}, "`depths` must hold 4 positive numbers"),
        ({"hidden_sizes": [2, 12, 16, 24]}, "at least 4"),
        ({"num_attention_heads": [1, 5, 2, 3]}, "must divide that of `hidden_sizes`"),
        ({"extra_depth": -1}, "`extra_depth` must not be negative, and is -1"),
        ({"budget": 1.5}, "`budget` must lie in \\[0, 1\\], not 1.5"),
        ({"drop_path_rate": 1.0}, "\\[0, 1\\)"),
        ({"routing": "random"}, "one of dynamic, static, not 'random'"),
        ({"num_channels": 0}, "`num_channels` must be positive"),
        ({"out_features": ["stage5"]}, "stage_names"),
    ],
)
def test_impossible_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "not nothing"),
        (torch.zeros(3, 48, 48), "shape \\(3, 48, 48\\)"),
        (torch.zeros(1, 1, 48, 48), "\\(batch, 3, height, width\\)"),
        (torch.zeros(1, 3, 0, 48), "holds no pixels"),
        (torch.zeros(1, 3, 28, 64), "too small: a map of 7x16 cannot be reduced by 8"),
    ],
)
def test_bad_images_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        DynamicTokenRoutingModel(config()).eval()(pixel_values)


def test_an_unknown_routing_is_refused():
    with pytest.raises(ValueError, match="one of dynamic, static, not 'none'"):
        DynamicTokenRoutingModel(config()).eval()(image(40, 40), routing="none")


def test_the_processor_prepares_a_photograph_as_pvt_v2_does(tmp_path):
    config().save_pretrained(tmp_path)
    DynamicTokenRoutingImageProcessor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is DynamicTokenRoutingImageProcessor
    photograph = np.full((300, 500, 3), 128, dtype=np.uint8)
    pixel_values = processor(photograph, return_tensors="pt")["pixel_values"]
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values[0, :, 100, 100], expected, atol=1e-5, rtol=1e-5)
